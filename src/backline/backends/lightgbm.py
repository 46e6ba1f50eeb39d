"""LightGBM boosters in text form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from backline.backends.backend import DEFAULT_OPTIONS, LoadOptions
from backline.backends.lightgbm_file import check_file
from backline.backends.parameters import Parameters
from backline.backends.runtime import import_runtime, read_start
from backline.backends.table import TableModel, features, reason
from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig

_KNOWN = ("num_threads",)


class LightGbm:
    """The backend for `model.txt`."""

    name: ClassVar[str] = "lightgbm"

    def load(self, path: Path, config: ModelConfig, options: LoadOptions = DEFAULT_OPTIONS) -> TableModel:
        """Loads a booster. `output__0` is the result of Booster.predict: probabilities for classifiers, [N]
        or [N, classes].

        A run uses one thread unless the parameter `num_threads` says otherwise.
        """
        parameters = Parameters(config, self.name, _KNOWN)
        threads = parameters.threads("num_threads", 1)
        if read_start(path).split(None, 1)[0] != b"tree":
            raise InvalidArgument(
                f"'{path}' is not a model that LightGBM's save_model wrote: it does not begin with 'tree'; if"
                " it is another file"
                " of that name, set default_model_filename to the model's own"
            )
        runtime = import_runtime("lightgbm", what="LightGBM models need LightGBM", extra="lightgbm")
        check_file(path)
        booster: Any
        try:
            booster = runtime.Booster(model_file=str(path))
            count = booster.num_feature()
        except Exception as error:
            raise InvalidArgument(
                f"'{path}' cannot be loaded by LightGBM {runtime.__version__}: {reason(error)}"
            ) from None

        def predict(rows: np.ndarray) -> np.ndarray:
            return np.asarray(booster.predict(rows, num_threads=threads))

        return TableModel(
            path, config, (features(count, DataType.FP64, config),), predict, threads, parameters.warnings
        )
