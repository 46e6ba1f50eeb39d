"""Text models in Hugging Face's layout: embeddings, reranking and classification, with ONNX Runtime."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="text",
        platform="text",
        target="backline.plugins.runtimes.text.backend:TextBackend",
        formats=(ModelFormat("text", ("modules.json", "onnx/model.onnx"), folder=True),),
        runtime="tokenizers",
        package="tokenizers",
        imports=(
            "backline.plugins.runtimes.text.tokenizer:import_tokenizers",
            "backline.plugins.runtimes.onnx.runtime:import_onnxruntime",
        ),
        extra="embeddings",
        page="docs/text-models.md",
    ),
)
