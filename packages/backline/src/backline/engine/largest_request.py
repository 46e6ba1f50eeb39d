"""Computes the size of the largest request to a model. The server refuses larger bodies.

The sizes are upper bounds on what clients write, not estimates. A request that is a byte larger may still be
valid JSON, as JSON may contain any number of blanks, but no client writes that many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Final, TypeAlias

from backline.engine.model import Model, ModelState
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature
from backline_client.values.tensor import Shape

#: A function that returns the maximum size, in bytes, of a tensor of numbers with the given shape in an
#: encoding, such as JSON.
SizeOf: TypeAlias = Callable[[Shape], int]

#: The maximum number of bytes outside the tensors: names, ids, parameters, and the headers of form parts.
ALLOWANCE: Final = 1 << 20
#: The maximum number of bytes that describe one tensor: its name, datatype, shape and parameters.
_DESCRIPTION = 1024
#: The maximum length, in bytes, of a line of JSON that contains one number or bracket: up to 24 characters
#: for an FP64 number, a comma, the line break, and the indentation of the tensor within the document.
_LINE = 64
#: The maximum indentation, in bytes, that each dimension adds to a line.
_INDENTATION = 8
#: The maximum number of bytes of a number in protobuf: a tag and a varint. Raw contents take less.
_VARINT = 16


def json_size(shape: Shape) -> int:
    """Returns the size of a tensor in JSON, in bytes, if each number and each bracket is on a separate line.

    The other forms of HTTP bodies (binary tensors, .npy, raw numbers) are smaller.
    """
    lists = sum(prod(shape[:depth]) for depth in range(len(shape)))
    return (2 * lists + prod(shape)) * (_LINE + _INDENTATION * len(shape))


def protobuf_size(shape: Shape) -> int:
    """Returns the maximum size in bytes of a tensor in a ModelInferRequest, in typed or in raw contents."""
    return prod(shape) * _VARINT


def largest_request(signature: Signature, most_items: int | None, size_of: SizeOf) -> int | None:
    """Returns the maximum size in bytes of a request, or None if there is no maximum.

    There is no maximum if an input has a variable dimension or is BYTES. The shapes in `signature` include
    the batch dimension, if there is one. `most_items` is the maximum batch size: 0 if the model has no batch
    dimension, None if it takes any number of items.
    """
    size = ALLOWANCE + _DESCRIPTION * (len(signature.inputs) + len(signature.outputs))
    for spec in signature.inputs:
        shape = spec.shape if most_items == 0 else (most_items or -1, *spec.shape[1:])
        if spec.datatype is DataType.BYTES or any(dimension < 0 for dimension in shape):
            return None
        size += size_of(shape)
    return size


def largest_request_to(versions: Iterable[Model], size_of: SizeOf) -> int | None:
    """Returns the maximum size in bytes of a request to any of the versions, or None if there is no maximum.

    There is also no maximum while the inputs of a version are unknown because it is not loaded. Versions in
    the state UNAVAILABLE, such as those that failed to load, are ignored.
    """
    most = 0
    for model in versions:
        if model.state is ModelState.UNAVAILABLE:
            continue
        known = model.state in (ModelState.READY, ModelState.UNLOADING) and not model.on_demand
        size = largest_request(model.signature, _most_items(model), size_of) if known else None
        if size is None:
            return None
        most = max(most, size)
    return most or None


def _most_items(model: Model) -> int | None:
    """Returns the batch size above which RequestCheck refuses a request; None if there is none. See
    `largest_request`.
    """
    config = model.config
    if model.max_batch_size and (config.max_batch_size is None or config.split_large_batches):
        return None
    return model.max_batch_size
