"""The built-in backends pass the conformance kit that third parties use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from backends.served_models import (
    LIGHTGBM,
    PITCH_LITERT,
    PITCH_ONNX,
    PITCH_OPENVINO,
    SKOPS,
    XGBOOST_JSON,
    XGBOOST_UBJ,
    Served,
    available,
)
from backline.backends.registry import find_backend
from backline.testing.backends import BackendConformance


class BuiltIn(BackendConformance):
    """A built-in backend with one of the models of tests/backends."""

    served: ClassVar[Served]

    def __init_subclass__(cls, backend: str = "", **others: object) -> None:
        super().__init_subclass__(**others)
        found = find_backend(backend)
        assert found is not None
        cls.plugin, cls.tolerance = found, cls.served.tolerance

    @pytest.fixture(autouse=True)
    def _runtime(self) -> None:
        if not available(self.served):
            pytest.skip(f"needs {self.served.needs}")

    def write_model(self, folder: Path) -> Path:
        self.served.build(folder)
        names = [name for format in self.plugin.formats for name in format.filenames]
        return next(folder / name for name in names if (folder / name).exists())

    def inputs(self, items: int) -> dict[str, np.ndarray]:
        return dict(self.served.inputs(items))

    def expected(self, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(self.served.answer(path.parent, inputs))


class TestOnnx(BuiltIn, backend="onnxruntime"):
    served = PITCH_ONNX


class TestLiteRt(BuiltIn, backend="litert"):
    served = PITCH_LITERT


class TestOpenVino(BuiltIn, backend="openvino"):
    served = PITCH_OPENVINO


class TestXgboost(BuiltIn, backend="xgboost"):
    served = XGBOOST_UBJ


class TestXgboostJson(BuiltIn, backend="xgboost"):
    served = XGBOOST_JSON


class TestLightGbm(BuiltIn, backend="lightgbm"):
    served = LIGHTGBM


class TestSklearn(BuiltIn, backend="sklearn"):
    served = SKOPS
