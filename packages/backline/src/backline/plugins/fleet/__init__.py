"""Models on other servers."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="remote",
        platform="remote",
        target="backline.plugins.fleet.backend:Remote",
        formats=(ModelFormat("remote", (), folder=True),),
        page="docs/backends.md",
    ),
)
