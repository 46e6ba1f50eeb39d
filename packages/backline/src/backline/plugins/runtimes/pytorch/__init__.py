"""TorchScript and exported programs, with PyTorch."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="pytorch",
        platform="pytorch_libtorch",
        target="backline.plugins.runtimes.pytorch.runtime:Pytorch",
        formats=(ModelFormat("pytorch", ("model.pt", "model.pt2", "model.jit"), (".pt", ".pt2", ".jit")),),
        runtime="PyTorch",
        package="torch",
        imports=("torch",),
        imports_by_suffix={".pt2": ("backline.plugins.runtimes.pytorch.programs:import_exporter",)},
        extra="torch",
        page="docs/backends.md",
    ),
)
