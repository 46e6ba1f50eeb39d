"""XGBoost boosters in JSON or UBJSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.parameters import Parameters
from backline.backends.runtime import import_runtime, read_start
from backline.backends.table import TableModel, features, reason
from backline.backends.xgboost_file import check_file
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig

_KNOWN = ("nthread",)


class XgBoost:
    """The backend for `model.json` and `*.ubj`."""

    name: ClassVar[str] = "xgboost"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TableModel:
        """Loads a booster. `output__0` is the result of Booster.inplace_predict: probabilities for
        classifiers, [N] or [N, classes].

        A run uses one thread unless the parameter `nthread` says otherwise.
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("nthread", 1)
        if b"learner" not in read_start(path):
            raise InvalidArgument(
                f"'{path}' is not a model that XGBoost's save_model wrote (JSON or UBJSON); if it is another"
                " file of that name, set"
                " default_model_filename to the model's own"
            )
        runtime = import_runtime("xgboost", what="XGBoost models need XGBoost", extra="xgboost")
        check_file(path)
        booster: Any
        try:
            booster = runtime.Booster({"nthread": threads}, model_file=str(path))
            count = booster.num_features()
        except Exception as error:
            raise InvalidArgument(
                f"'{path}' cannot be loaded by XGBoost {runtime.__version__}: {reason(error)}"
            ) from None

        def predict(rows: np.ndarray) -> np.ndarray:
            return np.asarray(booster.inplace_predict(rows, validate_features=False))

        return TableModel(
            path, config, (features(count, DataType.FP32, config),), predict, threads, parameters.warnings
        )
