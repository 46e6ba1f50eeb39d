"""CatBoost models with numerical and categorical features."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import decode, encode, import_runtime, loading, read_start
from backline.backends.tables import CATEGORIES, TableModel, features, reason
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec

_MAGIC = b"CBM1"
_PREDICTION_TYPES = ("RawFormulaVal", "Probability", "LogProbability", "Class", "Exponent")
_KNOWN = ("thread_count", "prediction_type")


class CatBoost:
    """The backend for `*.cbm`."""

    name: ClassVar[str] = "catboost"

    def check_file(self, path: Path) -> None:
        if not read_start(path).startswith(_MAGIC):
            raise InvalidArgument(
                f"'{path}' is not a CatBoost model: it does not begin with '{_MAGIC.decode()}'; write it with"
                " save_model"
            )

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TableModel:
        """Loads a model. `output__0` is the result of `predict`.

        By default, classifiers return probabilities, and other models return plain values; the parameter
        `prediction_type` selects another result. The input `input__0` has the numerical features, and
        `categorical__0` has the categorical ones as strings, each in the model's order. A run uses one thread
        unless the parameter `thread_count` is set.
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("thread_count", 1)
        self.check_file(path)
        runtime = import_runtime("catboost", what="CatBoost models need CatBoost", extra="catboost")
        model: Any = runtime.CatBoost()
        with loading(path, f"CatBoost {runtime.__version__}", reason):
            model.load_model(str(path))
            # CatBoost reads the model's metadata only now, and raises an error if the metadata is damaged.
            names, classifier = list(model.feature_names_), len(model.classes_) > 0
            categories = list(model.get_cat_feature_indices())
            others = {
                "text": list(model.get_text_feature_indices()),
                "embedding": list(model.get_embedding_feature_indices()),
            }
        for kind, indexes in others.items():
            if indexes:
                raise InvalidArgument(
                    f"'{path}' cannot be served: feature {names[indexes[0]]!r} is of type {kind}, but only"
                    " numbers and categories can be sent; train the model without it"
                )
        prediction = parameters.choice(
            "prediction_type", "Probability" if classifier else "RawFormulaVal", _PREDICTION_TYPES
        )
        numbers = [index for index in range(len(names)) if index not in set(categories)]

        def predict(*arrays: np.ndarray) -> np.ndarray:
            rows = arrays[0] if not categories else _mix(config.name, arrays, numbers, categories)
            answer = np.asarray(model.predict(rows, prediction_type=prediction, thread_count=threads))
            return encode(answer) if answer.dtype.kind in "OU" else answer

        inputs = []
        if numbers:
            inputs.append(features(len(numbers), DataType.FP32, config))
        if categories:
            inputs.append(TensorSpec(CATEGORIES, DataType.BYTES, (-1, len(categories))))
        return TableModel(path, config, inputs, predict, threads, parameters.warnings)


def _mix(model: str, arrays: tuple[np.ndarray, ...], numbers: list[int], categories: list[int]) -> np.ndarray:
    """Merges numerical and categorical features into rows, in the model's order of features."""
    rows = np.empty((len(arrays[-1]), len(numbers) + len(categories)), np.object_)
    if numbers:
        rows[:, numbers] = arrays[0]
    rows[:, categories] = decode(model, CATEGORIES, arrays[-1])
    return rows
