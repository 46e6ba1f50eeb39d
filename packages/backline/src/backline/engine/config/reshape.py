"""Reshapes tensors whose shape in the model differs from the shape that clients see (Triton's `reshape`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from backline_client.values.errors import Internal
from backline_client.values.tensor import Shape, Tensor


class Reshape:
    """A mapping from shapes that fit `source` to shapes that fit `target` and have the same number of
    elements.

    -1 is a variable dimension, such as the batch dimension. Both shapes have the same number of variable
    dimensions, whose sizes and order do not change.
    """

    __slots__ = ("_source", "_target", "_varying")

    def __init__(self, source: Shape, target: Shape) -> None:
        self._source = source
        self._target = target
        self._varying = tuple(axis for axis, dim in enumerate(source) if dim < 0)

    def shape(self, name: str, shape: Shape) -> Shape:
        """Maps a shape of the tensor `name`. Raises Internal if the shape does not fit `source`."""
        if len(shape) != len(self._source) or any(
            dim not in (-1, got) for dim, got in zip(self._source, shape, strict=True)
        ):
            raise Internal(
                f"the model has '{name}' with shape {list(shape)}, but its configuration reshapes"
                f" {list(self._source)} to {list(self._target)}"
            )
        sizes = iter([shape[axis] for axis in self._varying])
        return tuple(next(sizes) if dim < 0 else dim for dim in self._target)

    def array(self, name: str, array: np.ndarray) -> np.ndarray:
        """Reshapes the array of the tensor `name`. Raises Internal if its shape does not fit `source`."""
        return array.reshape(self.shape(name, array.shape))


Reshapes: TypeAlias = Mapping[str, Reshape]


def reshape_arrays(arrays: Mapping[str, np.ndarray], reshapes: Reshapes) -> dict[str, np.ndarray]:
    """Reshapes the arrays that have an entry in `reshapes`, and returns the others unchanged. Raises Internal
    for a shape that does not fit its Reshape.
    """
    return {
        name: reshapes[name].array(name, array) if name in reshapes else array
        for name, array in arrays.items()
    }


def reshape_tensor(tensor: Tensor, reshapes: Reshapes) -> Tensor:
    """Reshapes the tensor if it has an entry in `reshapes`. Raises Internal if the tensor's shape does not
    fit its Reshape.
    """
    reshape = reshapes.get(tensor.name)
    if reshape is None:
        return tensor
    data = reshape.array(tensor.name, tensor.data)
    return Tensor(tensor.name, tensor.datatype, data.shape, data)


def narrower(given: Shape, actual: Shape) -> Shape | None:
    """Returns the shape that fits both of two shapes, in which -1 means a variable dimension; None if no
    shape fits both.
    """
    if len(given) != len(actual) or any(
        -1 not in (g, a) and g != a for g, a in zip(given, actual, strict=True)
    ):
        return None
    return tuple(max(g, a) for g, a in zip(given, actual, strict=True))
