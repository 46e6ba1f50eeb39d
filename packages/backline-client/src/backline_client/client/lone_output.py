"""Recognises responses that differ from an earlier response only in the data of their output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Buffer, Shape, Tensor

#: Responses with more bytes than this before their data are not recognised.
_LONGEST: Final = 1024


@dataclass(frozen=True, slots=True)
class LoneOutput:
    """The form of an encoded response that has one output, no id and no parameters.

    The data of the output begin at `start` and end the response; `before` has all bytes before them.
    """

    start: int
    before: bytes
    model: str
    version: str
    name: str
    datatype: DataType
    shape: Shape

    def response(self, received: Buffer) -> InferResponse:
        """Returns the response in `received`, which must have the same size, and the same bytes before its
        data, as the response with this form.
        """
        data = np.frombuffer(received, self.datatype.dtype, offset=self.start).reshape(self.shape)
        return InferResponse(
            self.model, self.version, "", [Tensor(self.name, self.datatype, self.shape, data)]
        )


def lone_output(received: Buffer, start: int, response: InferResponse) -> LoneOutput | None:
    """Returns the form of `response`, whose last output has its data at received[start:].

    Returns None if the response has an id, has parameters or does not have exactly one output, if its output
    is empty or must be decoded, or if `start` is above _LONGEST.
    """
    if response.id or response.parameters or len(response.outputs) != 1:
        return None
    output = response.outputs[0]
    if output.datatype is DataType.BYTES or start > _LONGEST or start == len(received):
        return None
    return LoneOutput(
        start,
        bytes(received[:start]),
        response.model_name,
        response.model_version,
        output.name,
        output.datatype,
        output.shape,
    )
