"""Reads a request whose body is of any media type, and whose response has the form that Accept asks for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from backline.dialects.bodies.media import accepted
from backline.dialects.bodies.plan import BodyPlan, server_parameters
from backline.dialects.bodies.reader import read_body
from backline.dialects.documents import read_pairs
from backline.engine.engine import Engine
from backline.engine.parameters import RequestParameters
from backline_client.values.messages import Parameter
from backline_client.values.tensor import Buffer, Tensor

REQUEST_ID = b"x-request-id"
_MAX_ID = 256
#: Matches an integer that Python reads in linear time.
_INTEGER = re.compile(r"-?[0-9]{1,20}").fullmatch
_NONE: Mapping[str, Parameter] = MappingProxyType({})
_NO_PARAMETERS = RequestParameters()


class BodyReader:
    """Reads requests of protocols without messages of their own. The method `read` implements the protocol
    ReadRequest, and also takes parameters that are not in the body.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def read(
        self,
        body: Buffer,
        headers: Mapping[bytes, bytes],
        model: str,
        version: str,
        on_loop: bool,
        further: Mapping[str, Parameter] = _NONE,
    ) -> tuple[BodyPlan, str, dict[str, Tensor]]:
        served = self._engine.find_ready(model, version)
        form = accepted(headers.get(b"accept", b""))
        given = read_body(served, headers.get(b"content-type", b""), body, further, on_loop=on_loop)
        plan = BodyPlan(
            form,
            given.unbatched,
            given.rows,
            served.signature.outputs,
            server_parameters(served, given.parameters) if given.parameters else _NO_PARAMETERS,
        )
        return plan, request_id(headers), given.inputs


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """Returns the id that a client has chosen for its request; "" if it has not."""
    return headers.get(REQUEST_ID, b"")[:_MAX_ID].decode("latin-1")


def query_parameters(query: bytes) -> dict[str, Parameter]:
    """Returns the parameters in the query of a URL: `true`, `false` and integers as such, and anything else
    as text. Raises InvalidArgument for a malformed query.
    """
    return {name: _parameter_of(text) for name, text in read_pairs(query).items()}


def _parameter_of(text: str) -> Parameter:
    if text in ("true", "false"):
        return text == "true"
    return int(text) if _INTEGER(text) else text
