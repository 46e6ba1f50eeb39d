"""Tree ensembles (XGBoost, LightGBM, CatBoost): models that take rows of features and return a prediction for
each row.

The tensors are named as in Triton's FIL backend: `input__0` has the rows, and `output__0` the predictions.
XGBoost and LightGBM use numbers in a file as indices without checks, so their backends first check the trees
in the file, with functions of this module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from backline.backends.agreement import agree
from backline.backends.runtime import failed_run, one_line
from backline.engine.config.model_config import ModelConfig
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

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
    """A tree ensemble in memory, which runs by calling one prediction function; see LoadedModel."""

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
            raise Internal(f"model '{self._name}' is unloaded: load it again to use it")
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


MAX_CLASSES: Final = 1 << 20


class Damaged(Exception):
    """Raised when a file has inconsistent contents; the message says what is inconsistent."""


@contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Turns exceptions from checks of a file into InvalidArgument, which says that the file is damaged."""
    try:
        yield
    except KeyError as error:
        reason = f"{error.args[0]} is missing"
    except (Damaged, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        reason = str(error)
    except RecursionError:
        reason = "it is nested too deeply"
    except OSError as error:
        raise InvalidArgument(f"'{path}' cannot be read: {error.strerror}") from None
    else:
        return
    raise InvalidArgument(f"'{path}' is damaged, or was not copied completely: {reason}")


def check_range(name: str, values: np.ndarray, low: int, high: int) -> None:
    """Raises Damaged for a value outside [low, high)."""
    if values.size and not (values.min() >= low and values.max() < high):
        raise Damaged(f"a value of {name} is not from {low} to {high - 1}")


def check_children(parents: np.ndarray, left: np.ndarray, right: np.ndarray, nodes: int) -> None:
    """Raises Damaged unless each child of `parents` is a node other than the root 0, with only one parent.

    If no error is raised, the nodes that are reachable from the root form a tree, in which every walk ends.
    """
    if not len(left) == len(right) == len(parents):
        raise Damaged("a split does not have two children")
    children = np.concatenate([left, right])
    check_range("a split's children", children, 1, nodes)
    if len(np.unique(children)) != len(children):
        raise Damaged("a node is the child of two splits")
