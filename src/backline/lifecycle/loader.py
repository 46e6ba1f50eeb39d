"""One load: from a model file to a model that can be served, with the decision how."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backline.backends.backend import Backend, LoadedModel
from backline.backends.onnxruntime import OnnxRuntime
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import Lane, ModelConfig
from backline.engine.signature import Signature

BACKENDS: tuple[Backend, ...] = (OnnxRuntime(),)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, and how it is to be served."""

    model: LoadedModel
    backend: str
    platform: str
    signature: Signature
    max_batch_size: int
    batch_limit: int
    lane: Lane
    instances: int
    reason: str


def load(path: Path, config: ModelConfig) -> Loaded:
    backend = BACKENDS[0]
    model = backend.load(path, config)
    return Loaded(model, backend.name, backend.platform, model.signature, 64, 64, "inline", 1, "")
