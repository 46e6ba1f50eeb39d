"""The plan of a request with a body that `reader` reads, which also says how to write the response."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from backline.dialects.bodies.bodies import BODIES
from backline.dialects.bodies.media import Form
from backline.dialects.bodies.reader import KNOWN
from backline.dialects.documents import suggestion
from backline.dialects.off_loop import is_long
from backline.engine.model import Model
from backline.engine.parameters import BINARY_OUTPUT, EMPTY_FINAL, RequestParameters, read_parameters
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor


@dataclass(slots=True, eq=False)
class BodyPlan:
    """A RequestPlan of a protocol whose requests and responses are bodies of many media types.

    `outputs` are the model's outputs. With `unbatched`, the request left out the batch dimension, so the
    response does too. With `rows`, the request was a list of rows, so a response in JSON is one too.
    """

    form: Form
    unbatched: bool
    rows: bool
    outputs: tuple[TensorSpec, ...]
    parameters: RequestParameters

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        given = self.parameters
        return InferRequest(
            model,
            inputs,
            version,
            id,
            None,
            given.others,
            given.priority,
            deadline,
            given.timeout,
            given.sequence,
        )

    def is_large(self, response: InferResponse) -> bool:
        body = BODIES.get(self.form.kind)
        return (body is not None and not body.quick) or any(map(is_long, response.outputs))

    def release(self) -> None:
        """Does nothing: a plan holds no resources."""


def server_parameters(model: Model, given: Mapping[str, Parameter]) -> RequestParameters:
    """Reads parameters as the Open Inference Protocol does, except for those that choose the form of its
    responses.

    Raises InvalidArgument for an invalid parameter, and for an unknown one if the model reads none.
    """
    for name in given:
        if name in (BINARY_OUTPUT, EMPTY_FINAL):
            raise InvalidArgument(
                f"parameter '{name}' belongs to the Open Inference Protocol; here, the header field Accept"
                " chooses the form of the response"
            )
    read = read_parameters(given)
    if read.others and not model.reads_parameters:
        name = next(iter(read.others))
        raise InvalidArgument(
            f"unknown parameter '{name[:64]}': model '{model.name}' reads no parameters of its own."
            f" {suggestion(name, KNOWN)}"
        )
    return read
