"""SavedModels, with TensorFlow."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="tensorflow",
        platform="tensorflow_savedmodel",
        target="backline.plugins.runtimes.tensorflow.runtime:TensorFlow",
        formats=(
            ModelFormat("tensorflow", ("model.savedmodel/saved_model.pb", "saved_model.pb"), folder=True),
        ),
        runtime="TensorFlow",
        package="tensorflow",
        imports=("backline.plugins.runtimes.tensorflow.runtime:import_tensorflow",),
        extra="tensorflow",
        page="docs/backends.md",
    ),
)
