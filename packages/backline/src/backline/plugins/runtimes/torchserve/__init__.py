"""TorchServe's model archives."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="torchserve",
        platform="torchserve",
        target="backline.plugins.runtimes.torchserve.backend:TorchServe",
        formats=(
            ModelFormat("torchserve", ("MAR-INF/MANIFEST.json",), folder=True),
            ModelFormat("torchserve", ("model.mar", "model.tar.gz", "model.tgz"), (".mar",)),
        ),
        hosted=True,
        extra="torchserve",
        page="docs/backends.md",
    ),
)
