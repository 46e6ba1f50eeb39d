"""Models without a file, for tests: Triton's identity, repeat and square."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="identity",
        platform="identity",
        target="backline.plugins.runtimes.reference.identity:Identity",
        formats=(ModelFormat("identity", (), folder=True),),
        page="docs/backends.md",
    ),
    BackendPlugin(
        name="repeat",
        platform="repeat",
        target="backline.plugins.runtimes.reference.streams:Repeat",
        formats=(ModelFormat("repeat", (), folder=True),),
        page="docs/backends.md",
    ),
    BackendPlugin(
        name="square",
        platform="square",
        target="backline.plugins.runtimes.reference.streams:Square",
        formats=(ModelFormat("square", (), folder=True),),
        page="docs/backends.md",
    ),
)
