"""The inputs and outputs of a model."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Shape


class TensorSpec(Struct, frozen=True):
    """An input or output of a model.

    `shape` has -1 for variable dimensions. `labels` name the classes of a classification output, or list
    values that an input is known to accept. In a configuration, `shape` is the shape that clients see, and
    `reshape` the shape that the model has, or None if both are the same. `json` is "object" or "list" if each
    element of a BYTES tensor is the JSON text of an object or a list. `media` is "image" or "audio" if each
    element is a file of that kind. `column` says that the input is a column of a table: an empty string
    stands for a missing value, and a boolean may be sent as a number.
    """

    name: str
    datatype: DataType
    shape: Shape
    optional: bool = False
    labels: tuple[str, ...] = ()
    reshape: Shape | None = None
    json: str = ""
    media: str = ""
    column: bool = False

    def listed_values(self) -> np.ndarray:
        """Returns the `labels` of an input as an array of its datatype."""
        if self.datatype is DataType.BYTES:
            values = np.empty(len(self.labels), np.object_)
            values[:] = [label.encode() for label in self.labels]
            return values
        if self.datatype is DataType.BOOL:
            return np.array([label == "True" for label in self.labels], np.bool_)
        return np.array(self.labels, np.str_).astype(np.float64).astype(self.datatype.dtype)

    def __str__(self) -> str:
        """Returns the description of the tensor for messages, such as "x FP32[-1, 4]"."""
        return f"{self.name} {self.datatype.name}{list(self.shape)}{' (optional)' * self.optional}"


class Signature(Struct, frozen=True):
    """The inputs and outputs of a model, in the model's order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def is_fixed(self, *, batched: bool) -> bool:
        """Returns whether the inputs of all requests have the same shapes, except for the batch dimension."""
        first = 1 if batched else 0
        return all(not spec.optional and dim >= 0 for spec in self.inputs for dim in (0, *spec.shape[first:]))
