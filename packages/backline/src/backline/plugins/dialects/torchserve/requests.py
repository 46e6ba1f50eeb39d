"""Reads and writes the bodies of predictions. The body of a request to a model archive goes to its handler as
it is; that of a request to any other model becomes its inputs, by the model's signature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, TypeAlias
from uuid import uuid4

import numpy as np
from msgspec import Struct

from backline.dialects.bodies.media import accepted
from backline.dialects.bodies.plan import BodyPlan, server_parameters
from backline.dialects.bodies.raw import takes_files
from backline.dialects.bodies.reader import read_body
from backline.dialects.bodies.requests import REQUEST_ID, request_id
from backline.dialects.bodies.writer import write_body
from backline.dialects.off_loop import SMALL, LargeRequest
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.parameters import RequestParameters
from backline.plugins.dialects.torchserve.errors import find_ready
from backline.wire.application import Fields
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, Unsupported
from backline_client.values.messages import InferRequest, InferResponse, Parameter
from backline_client.values.tensor import Buffer, Tensor

#: The input of a model archive, and names under which clients send the only input of any other model.
BODY: Final = "data"
STAND_INS: Final = (BODY, "body")
#: The parameters that a handler sees besides header fields: whether to explain the prediction or to describe
#: the model. The first one also tells an archive that the body is one of TorchServe's.
EXPLAIN, DESCRIBE = "explain", "describe"
#: The parameter that tells an archive that the body is the fields of a row, in MessagePack.
FIELDS: Final = ":fields"
#: The parameter of a response in which an archive says its HTTP status.
STATUS: Final = ":status"
#: Header fields that handlers do not see, because they are the caller's credentials.
_CREDENTIALS: Final = frozenset((b"authorization", b"proxy-authorization", b"x-api-key", b"cookie"))
#: Header fields of a response that the server itself sets.
_OF_SERVER: Final = frozenset(("connection", "content-length", "date", "transfer-encoding", "keep-alive"))
_FIELD_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*").fullmatch
_NONE = RequestParameters()
#: Responses depend on the model's state, so TorchServe forbids every cache to keep them.
UNCACHED: Fields = (
    (b"pragma", b"no-cache"),
    (b"cache-control", b"no-cache; no-store, must-revalidate, private"),
    (b"expires", b"Thu, 01 Jan 1970 00:00:00 UTC"),
)


class ArchivePlan(Struct, frozen=True, eq=False):
    """A RequestPlan for a model archive. `parameters` are what the handler sees as header fields."""

    id: str
    parameters: dict[str, Parameter]

    def request(
        self, model: str, version: str, id: str, inputs: dict[str, Tensor], deadline: float | None
    ) -> InferRequest:
        return InferRequest(model, inputs, version, id, parameters=self.parameters, deadline=deadline)

    def is_large(self, response: InferResponse) -> bool:
        return False  # the bytes are sent as they are

    def release(self) -> None:
        """Does nothing: a plan holds no resources."""


Plan: TypeAlias = ArchivePlan | BodyPlan


class Reply(Struct, frozen=True):
    """An HTTP response."""

    status: int
    fields: Fields
    body: Buffer


def is_archive(model: Model) -> bool:
    """Returns whether a model is an archive whose handler gets the body of a request."""
    return model.backend == "torchserve" and [spec.name for spec in model.signature.inputs] == [BODY]


class RequestReader:
    """Reads the requests of one route. The method `read` implements the protocol ReadRequest."""

    def __init__(self, engine: Engine, parameters: Mapping[str, Parameter]) -> None:
        """`parameters` are added to the header fields that the handler of an archive sees."""
        self._engine = engine
        self._parameters = parameters

    def read(
        self, body: Buffer, headers: Mapping[bytes, bytes], name: str, version: str, on_loop: bool
    ) -> tuple[Plan, str, dict[str, Tensor]]:
        model = find_ready(self._engine, name, version)
        id = request_id(headers) or str(uuid4())
        if is_archive(model):
            if on_loop and len(body) > SMALL and not isinstance(body, bytes):
                raise LargeRequest  # to be copied
            given = fields_of(headers)
            given.update(self._parameters)
            return ArchivePlan(id, given), id, {BODY: body_tensor(model, bytes(body))}
        if self._parameters.get(EXPLAIN) == "True":
            raise Unsupported(
                f"model '{name}' has no explanations: only the handlers of model archives explain predictions"
            )
        kind = headers.get(b"content-type", b"")
        if not kind and takes_files(model):  # as `curl -T` sends files
            kind = b"application/octet-stream"
        given_body = read_body(model, kind, body, on_loop=on_loop, stand_ins=STAND_INS)
        plan = BodyPlan(
            accepted(headers.get(b"accept", b"")),
            given_body.unbatched,
            given_body.rows,
            model.signature.outputs,
            server_parameters(model, given_body.parameters) if given_body.parameters else _NONE,
        )
        return plan, id, given_body.inputs


def fields_of(headers: Mapping[bytes, bytes]) -> dict[str, Parameter]:
    """Returns header fields as the handler of an archive sees them: all but credentials."""
    return {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers.items()
        if name not in _CREDENTIALS
    }


def body_tensor(model: Model, body: bytes) -> Tensor:
    """Returns the input of an archive: one row with the bytes of a body."""
    shape = (1, 1) if model.max_batch_size else (1,)
    data = np.empty(shape, np.object_)
    data.reshape(-1)[0] = body
    return Tensor(BODY, DataType.BYTES, shape, data)


def write_reply(plan: Plan, response: InferResponse) -> Reply:
    """Returns the HTTP response. Raises what `write_body` raises, and Internal for header fields of a handler
    that cannot be sent.
    """
    shared = ((REQUEST_ID, response.id.encode("latin-1", "replace")), *UNCACHED)
    if isinstance(plan, BodyPlan):
        kind, body = write_body(plan, response)
        return Reply(200, ((b"content-type", kind.encode()), *shared), body)
    parameters = dict(response.parameters or {})
    status = int(parameters.pop(STATUS, 200))
    own = [_field(name, value) for name, value in parameters.items() if name.lower() not in _OF_SERVER]
    return Reply(status, (*own, *shared), content_of(response))


def content_of(response: InferResponse) -> bytes:
    """Returns the result of an archive's handler for a request with one row."""
    content: bytes = response.outputs[0].data.reshape(-1)[0]
    return content


def _field(name: str, value: Parameter) -> tuple[bytes, bytes]:
    """Security: a line break in a field would let a model write the rest of the response."""
    text = str(value)
    if _FIELD_NAME(name) is None or _FIELD_VALUE(text) is None:
        raise Internal(f"the handler set a response header that is not valid: '{name[:64]}'")
    return name.lower().encode(), text.encode("latin-1")
