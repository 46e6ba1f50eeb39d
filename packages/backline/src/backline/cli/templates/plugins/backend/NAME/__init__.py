"""A backend of Backline for models in .NAME files."""

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

# This module is imported to list the plug-in: keep the runtime's import in backend.py.
PLUGIN = BackendPlugin(
    name="NAME",
    summary="Models in .NAME files",
    target="NAME.backend:NameBackend",
    formats=(ModelFormat("NAME", ("model.NAME",), (".NAME",)),),
    runtime="NAME",
    package="NAME",
    api_version=1,
)
