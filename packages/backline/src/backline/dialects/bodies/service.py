"""Runs models on requests whose bodies are of any media type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias
from urllib.parse import quote

from backline.dialects.bodies.media import EVENTS, accepted
from backline.dialects.bodies.plan import BodyPlan
from backline.dialects.bodies.requests import BodyReader, query_parameters
from backline.dialects.bodies.writer import write_body, write_json
from backline.dialects.deferred import DeferredAnswers
from backline.dialects.event_stream import EventStreams
from backline.dialects.exchange import (
    HTTP,
    Carrier,
    HttpBody,
    ReadRequest,
    RequestIntake,
    UnaryInference,
    deadline_of,
)
from backline.dialects.off_loop import OffLoop
from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.tracing import Trace
from backline.wire.application import HttpRequest
from backline_client.values.errors import NotAcceptable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Buffer

_STREAMS = "the model sends any number of responses; ask for them with Accept: text/event-stream"
_Take: TypeAlias = Callable[[HttpRequest, Buffer, Mapping[bytes, bytes], str, str, float | None], None]


class BodyService:
    """The handler of routes that take a body of any media type. A decoupled model's responses are a stream of
    events.
    """

    def __init__(
        self, engine: Engine, deferred: DeferredAnswers, carrier: Carrier[HttpRequest, HttpBody] = HTTP
    ) -> None:
        self._engine = engine
        self._deferred = deferred
        self._carrier = carrier
        self._off_loop = OffLoop()
        self._streams = EventStreams(self._off_loop)
        self._read = BodyReader(engine).read
        self._take_one = self._unary(self._read)
        self._take_stream = self._streaming(self._read)

    def _unary(self, read: ReadRequest[BodyPlan]) -> _Take:
        inference = UnaryInference(
            self._engine, self._carrier, read, write_response, self._off_loop, decoupled=_STREAMS
        )
        return inference.take

    def _streaming(self, read: ReadRequest[BodyPlan]) -> _Take:
        return RequestIntake(self._engine, self._carrier, read, self._stream, self._off_loop).take

    def run(self, model: str, version: str, request: HttpRequest) -> None:
        """Submits a request; the response follows later. Raises BacklineError if the request is refused
        immediately.
        """

        def known() -> None:
            streams = _wants_events(request.headers, self._engine.find_ready(model, version))
            if request.query:
                read = partial(self._read, further=query_parameters(request.query))
                take = self._streaming(read) if streams else self._unary(read)
            else:
                take = self._take_stream if streams else self._take_one
            take(request, request.body, request.headers, model, version, deadline_of(request.headers))

        self._deferred.when_known(model, version, request, known)

    def _stream(
        self,
        request: HttpRequest,
        deadline: float | None,
        trace: Trace | None,
        asked: InferRequest,
        plan: BodyPlan,
    ) -> None:
        admit = None if request.identity is None else request.identity.follow
        responses = self._engine.stream(asked, deadline, trace=trace, admit=admit, fields=request.headers)
        self._streams.answer(request, asked.model_name, responses, partial(write_json, plan))


def _wants_events(headers: Mapping[bytes, bytes], model: Model) -> bool:
    """Returns whether to send the responses as events.

    Raises NotAcceptable if the client wants a single response from a decoupled model.
    """
    field = headers.get(b"accept", b"")
    if b"event-stream" in field and accepted(field).kind == EVENTS:
        return True
    if model.decoupled and field not in (b"", b"*/*"):
        raise NotAcceptable(_STREAMS)
    return model.decoupled


def write_response(plan: BodyPlan, response: InferResponse) -> HttpBody:
    """Returns the header fields and the body of the response, in the form that the client accepts; raises
    what `write_body` raises.
    """
    kind, body = write_body(plan, response)
    version = quote(response.model_version).encode()
    return ((b"content-type", kind.encode()), (b"backline-model-version", version)), [body]
