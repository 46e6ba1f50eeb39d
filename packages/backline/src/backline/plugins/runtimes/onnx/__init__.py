"""ONNX models, with ONNX Runtime."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="onnxruntime",
        platform="onnxruntime_onnx",
        target="backline.plugins.runtimes.onnx.runtime:OnnxRuntime",
        formats=(ModelFormat("onnxruntime", ("model.onnx",), (".onnx",)),),
        runtime="ONNX Runtime",
        package="onnxruntime",
        imports=("backline.plugins.runtimes.onnx.runtime:import_onnxruntime",),
        extra="onnx",
        page="docs/backends.md",
    ),
)
