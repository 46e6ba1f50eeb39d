"""Models loaded without a server, through the registry as a server does it."""

from __future__ import annotations

from pathlib import Path

from backline.backends.backend import LoadedModel, LoadOptions
from backline.backends.registry import choose
from backline.engine.model_config import ModelConfig


def load(path: Path, *, trust_pickle: bool = False, **fields: object) -> LoadedModel:
    config = ModelConfig("m", source="config.pbtxt", **fields)  # type: ignore[arg-type]
    return choose(config, path).backend().load(path, config, LoadOptions(trust_pickle=trust_pickle))
