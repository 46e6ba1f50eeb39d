"""Bodies that are one input: a .npy file, raw numbers, or the bytes of a text, an image or a sound."""

from __future__ import annotations

import numpy as np

from backline.dialects.bodies.media import BINARY, NPY, read_npy
from backline.dialects.bodies.values import bytes_tensor
from backline.dialects.input_plan import check_bytes_elements
from backline.engine.model import Model
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, UnsupportedMediaType
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor, decode_tensor, element_count


def is_text(spec: TensorSpec) -> bool:
    return spec.datatype is DataType.BYTES and not spec.json


def takes_files(model: Model) -> bool:
    """Returns whether a body of any type is the bytes of the model's only required input."""
    required = [spec for spec in model.signature.inputs if not spec.optional]
    return len(required) == 1 and is_text(required[0]) and not required[0].column


def only_input(model: Model, kind: str) -> TensorSpec:
    inputs = model.signature.inputs
    required = [spec for spec in inputs if not spec.optional] or list(inputs)
    if len(required) == 1:
        return required[0]
    names = ", ".join(spec.name for spec in inputs) or "none"
    raise UnsupportedMediaType(
        f"a body of type '{kind[:64]}' can be sent only to a model with one input, but this model has"
        f" {len(required)} ({names}); send JSON, or a form with a part for each input"
    )


def of_body(spec: TensorSpec, kind: str, body: bytes, model: Model) -> Tensor:
    """Returns the tensor in `body`, a file or raw body of the media type `kind`.

    Raises InvalidArgument if the bytes do not fit the input, and UnsupportedMediaType if the input cannot be
    read from this type.
    """
    if kind in (NPY, "application/npy"):
        return _of_npy(spec, body)
    if spec.datatype is DataType.BYTES:
        return bytes_tensor(spec, body)
    if kind != BINARY:
        raise UnsupportedMediaType(
            f"input '{spec.name}' takes {spec.datatype.name} numbers, which cannot be read from"
            f" '{kind[:64]}'; send JSON, {NPY}, or raw little-endian numbers as {BINARY}"
        )
    return decode_tensor(spec.name, spec.datatype, _shape_for(spec, len(body), model), body)


def _of_npy(spec: TensorSpec, body: bytes) -> Tensor:
    array = read_npy(spec.name, body)
    if spec.datatype is DataType.BYTES:
        if array.dtype.kind not in "SU":
            raise InvalidArgument(
                f"the .npy file for input '{spec.name}' holds numbers; the input takes BYTES"
            )
        check_bytes_elements(array.size)
        elements = np.empty(array.size, np.object_)
        try:
            elements[:] = [
                text.encode() if isinstance(text, str) else text for text in array.reshape(-1).tolist()
            ]
        except (ValueError, SystemError):  # numpy raises SystemError for numbers beyond the last code point
            raise InvalidArgument(
                f"the .npy file for input '{spec.name}' holds text that is not Unicode"
            ) from None
        return Tensor(spec.name, spec.datatype, array.shape, elements.reshape(array.shape))
    wanted = spec.datatype.dtype
    if array.dtype.newbyteorder("=") != wanted:
        raise InvalidArgument(
            f"the .npy file for input '{spec.name}' holds {array.dtype}, but the input takes {wanted}"
        )
    return Tensor(spec.name, spec.datatype, array.shape, np.ascontiguousarray(array, wanted))


def _shape_for(spec: TensorSpec, size: int, model: Model) -> tuple[int, ...]:
    """Returns the shape of an input that is sent as `size` bytes of raw numbers.

    The length of a variable dimension follows from `size`. If a batched model has more than one variable
    dimension, the batch has one item. Raises InvalidArgument if the shape cannot be derived from `size`.
    """
    dimensions = list(spec.shape)
    if model.max_batch_size and dimensions and dimensions.count(-1) > 1:
        dimensions[0] = 1
    if dimensions.count(-1) > 1:
        raise InvalidArgument(
            f"the shape {dimensions} of input '{spec.name}' cannot be derived from the size of a raw body;"
            f" send JSON or {NPY}"
        )
    if -1 in dimensions:
        known = element_count([dim for dim in dimensions if dim >= 0]) * spec.datatype.itemsize
        if not known or size % known:
            raise InvalidArgument(
                f"input '{spec.name}' has {size} bytes, which is not a multiple of {known}:"
                f" {spec.datatype.name}{dimensions}"
            )
        dimensions[dimensions.index(-1)] = size // known
    return tuple(dimensions)
