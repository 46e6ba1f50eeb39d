"""TFLite models, with LiteRT."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="litert",
        platform="litert",
        target="backline.plugins.runtimes.litert.runtime:LiteRt",
        formats=(ModelFormat("litert", ("model.tflite",), (".tflite",)),),
        runtime="LiteRT",
        package="ai-edge-litert",
        imports=("ai_edge_litert.interpreter",),
        extra="litert",
        page="docs/backends.md",
    ),
)
