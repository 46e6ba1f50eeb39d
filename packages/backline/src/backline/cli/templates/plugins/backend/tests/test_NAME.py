"""The backend passes the checks of Backline's own backends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from NAME import PLUGIN

from backline.testing.backends import BackendConformance


class TestNameBackend(BackendConformance):
    plugin = PLUGIN

    def write_model(self, folder: Path) -> Path:
        path = folder / "model.NAME"
        path.write_text('{"scale": 2.5}')
        return path

    def inputs(self, items: int) -> dict[str, np.ndarray]:
        return {"x": np.arange(4 * items, dtype=np.float32).reshape(items, 4)}

    def expected(self, path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": inputs["x"] * np.float32(2.5)}
