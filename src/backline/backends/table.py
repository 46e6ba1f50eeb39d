"""Models that take rows of features and return a prediction for each (XGBoost, LightGBM, CatBoost).

The tensors are named as in Triton's FIL backend: `input__0` has the rows, and `output__0` the predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from backline.backends.agreement import agree
from backline.backends.runtime import failed_run, one_line
from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import BacklineError, Internal
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import Signature, TensorSpec

INPUT = "input__0"
CATEGORIES = "categorical__0"
OUTPUT = "output__0"

#: A function that takes the input arrays in the order of the signature and returns the output.
Predict = Callable[..., np.ndarray]


def features(count: int, datatype: DataType, config: ModelConfig) -> TensorSpec:
    """Returns the input for `count` features, of type `datatype` unless FP32 or FP64 is configured."""
    given = next((spec.datatype for spec in config.inputs if spec.name == INPUT), None)
    return TensorSpec(INPUT, given if given in (DataType.FP32, DataType.FP64) else datatype, (-1, count))


class TableModel:
    """A model that consists of one prediction function."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        inputs: Sequence[TensorSpec],
        predict: Predict,
        threads: int,
        warnings: tuple[str, ...],
    ) -> None:
        self._name = config.name
        self._inputs = tuple(spec.name for spec in inputs)
        self._predict: Predict | None = predict
        file = Signature(tuple(inputs), (self._try(inputs),))
        self.signature = agree(path, file, config)
        self.threads_per_run = threads
        self.warnings = warnings

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        if self._predict is None:
            raise Internal(f"model '{self._name}' is unloaded")
        try:
            answer = self._predict(*(inputs[name] for name in self._inputs))
        except BacklineError:
            raise
        except Exception as error:
            refused = isinstance(error, ValueError)
            raise failed_run(self._name, reason(error), refused=refused) from None
        return [answer for _ in outputs]

    def close(self) -> None:
        self._predict = None

    def _try(self, inputs: Sequence[TensorSpec]) -> TensorSpec:
        """Runs the model on two rows of zeros to find the shape and type of its output."""
        zeros = {spec.name: _zeros(spec) for spec in inputs}
        (answer,) = self.run(zeros, [OUTPUT])
        datatype = DataType.BYTES if answer.dtype.kind in "OSU" else DataType.from_dtype(answer.dtype)
        return TensorSpec(OUTPUT, datatype, (-1, *answer.shape[1:]))


def _zeros(spec: TensorSpec) -> np.ndarray:
    array = np.zeros((2, *spec.shape[1:]), spec.datatype.dtype)
    if spec.datatype is DataType.BYTES:
        array.fill(b"")
    return array


def reason(error: Exception) -> str:
    """Returns the text of a library's error, without the C++ stack trace and the timestamp."""
    text = str(error).partition("Stack trace")[0]
    head, bracket, rest = text.partition("] ")
    return one_line(rest if bracket and head.startswith("[") else text)
