"""MLflow models, with the runtime of their flavour."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="mlflow",
        platform="mlflow",
        target="backline.plugins.runtimes.mlflow.backend:MlFlow",
        formats=(ModelFormat("mlflow", ("MLmodel", "model/MLmodel"), folder=True),),
        runtime="the runtime of the MLflow model",
        extra="mlflow",
        further_extras="backline.plugins.runtimes.mlflow.backend:extras",
        loaded_by="backline.plugins.runtimes.mlflow.backend:backend_for",
        page="docs/backends.md",
    ),
    BackendPlugin(
        name="mlflow_pyfunc",
        platform="mlflow_pyfunc",
        target="backline.plugins.runtimes.mlflow.backend:PyFunc",
        hosted=True,
        extra="mlflow",
        page="docs/backends.md",
    ),
)
