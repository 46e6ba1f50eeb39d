"""Models in Python, among them those of Triton's Python backend."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="python",
        platform="python",
        target="backline.backends.python:Python",
        formats=(ModelFormat("python", ("model.py",)),),
        hosted=True,
        page="docs/backends.md",
    ),
)
