"""Writes the response to a prediction: `predictions`, a list of rows, or `outputs`, a value for each one."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec
import numpy as np

from backline.dialects.bodies.values import value_of, widened
from backline.dialects.exchange import HttpBody
from backline.dialects.json_data import write_nested
from backline.dialects.off_loop import LARGE
from backline.plugins.dialects.tensorflow_serving.reader import PredictPlan
from backline.wire.application import Fields
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

_FIELDS: Final[Fields] = ((b"content-type", b"application/json"),)
#: The end of the names of outputs whose strings are always written in base64.
_BYTES: Final = "_bytes"
_encode = msgspec.json.Encoder().encode


def write_prediction(plan: PredictPlan, response: InferResponse, *, rows: bytes = b"predictions") -> HttpBody:
    """Returns the header fields and the body of the response. `rows` is the key of a response with rows.

    Raises InvalidArgument for outputs that are not rows, if the request was.
    """
    outputs = response.outputs
    if plan.unbatched or plan.narrow:
        outputs = [shaped(plan, one) for one in outputs]
    if not plan.rows:
        text = _text(outputs[0]) if len(outputs) == 1 else _by_name(outputs)
        return _FIELDS, _joined(b'{"outputs":', text)
    _check_rows(outputs)
    text = _text(outputs[0]) if len(outputs) == 1 else _objects(outputs)
    return _FIELDS, _joined(b'{"%b":' % rows, text)


write_explanation = partial(write_prediction, rows=b"explanations")


def _joined(beginning: bytes, text: bytes) -> list[bytes]:
    return [beginning, text, b"}"] if len(text) > LARGE else [b"".join((beginning, text, b"}"))]


def shaped(plan: PredictPlan, tensor: Tensor) -> Tensor:
    """Returns an output without what reading has changed in the shapes of the inputs."""
    shape = tensor.shape
    if plan.unbatched:
        shape = (1, *shape)
    if plan.narrow and len(shape) > 1 and shape[-1] == 1:
        shape = shape[:-1]
    if shape is tensor.shape:
        return tensor
    return Tensor(tensor.name, tensor.datatype, shape, tensor.data.reshape(shape))


def _check_rows(outputs: Sequence[Tensor]) -> None:
    rows = -1
    for tensor in outputs:
        if not tensor.shape:
            raise InvalidArgument(f"Tensor name: {tensor.name} has no shape information ")
        if rows not in (-1, tensor.shape[0]):
            raise InvalidArgument(
                f"Tensor name: {tensor.name} has inconsistent batch size: {tensor.shape[0]} expecting: {rows}"
            )
        rows = tensor.shape[0]


def _text(tensor: Tensor) -> bytes:
    """Returns an output as nested lists in JSON."""
    if tensor.datatype is not DataType.BYTES:
        return write_nested(widened(tensor.data) if tensor.datatype is DataType.BF16 else tensor.data)
    if not tensor.name.endswith(_BYTES):
        return _encode(value_of(tensor))
    elements = np.empty(tensor.data.shape, np.object_)
    elements.reshape(-1)[:] = [
        {"b64": base64.b64encode(one if isinstance(one, bytes) else str(one).encode()).decode()}
        for one in tensor.data.reshape(-1).tolist()
    ]
    return _encode(elements.tolist())


def _by_name(outputs: Sequence[Tensor]) -> bytes:
    return b"{%b}" % b",".join([b"%b:%b" % (_encode(one.name), _text(one)) for one in outputs])


def _objects(outputs: Sequence[Tensor]) -> bytes:
    """Returns a list with an object for each row."""
    names = [_encode(one.name) for one in outputs]
    columns = [_rows(one) for one in outputs]
    rows = (
        b"{%b}" % b",".join([b"%b:%b" % pair for pair in zip(names, row, strict=True)])
        for row in zip(*columns, strict=True)
    )
    return b"[%b]" % b",".join(rows)


def _rows(tensor: Tensor) -> list[bytes]:
    """Returns the JSON of each row of an output. Numbers are all written, then cut where rows end."""
    depth = len(tensor.shape) - 1
    if tensor.datatype is DataType.BYTES or not tensor.data.size:
        rows = [np.array(row, tensor.data.dtype) for row in tensor.data]
        return [_text(Tensor(tensor.name, tensor.datatype, row.shape, row)) for row in rows]
    opening, closing = b"[" * depth, b"]" * depth
    cut = _text(tensor)[depth + 1 : -depth - 1].split(closing + b"," + opening)
    return [b"%b%b%b" % (opening, row, closing) for row in cut]
