"""Exported JAX functions."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="jax",
        platform="jax",
        target="backline.plugins.runtimes.jax.runtime:Jax",
        formats=(ModelFormat("jax", ("model.jax",), (".jax",)),),
        runtime="JAX",
        package="jax",
        imports=("jax", "jax.export"),
        extra="jax",
        page="docs/backends.md",
    ),
)
