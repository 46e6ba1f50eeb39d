"""OpenVINO models."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="openvino",
        platform="openvino",
        target="backline.plugins.runtimes.openvino.runtime:OpenVino",
        formats=(ModelFormat("openvino", ("model.xml",), (".xml",)),),
        runtime="OpenVINO",
        package="openvino",
        imports=("backline.plugins.runtimes.openvino.runtime:import_openvino",),
        extra="openvino",
        page="docs/backends.md",
    ),
)
