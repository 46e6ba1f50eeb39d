"""Unary inference over REST: the infer routes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from backline.dialects.deferred import DeferredAnswers
from backline.dialects.exchange import ENVOY_TIMEOUT, GRPC_TIMEOUT, HTTP, UnaryInference, deadline_of
from backline.dialects.forwarding import ForwardPattern
from backline.dialects.off_loop import OffLoop
from backline.dialects.open_inference.rest.messages import HEADER_LENGTH, RestReader
from backline.dialects.open_inference.rest.response_writer import RestWriter
from backline.engine.engine import Engine
from backline.wire.application import HttpRequest

#: Triton's error text for decoupled models.
_DECOUPLED = "HTTP end point doesn't support models with decoupled transaction policy"


class RestInference:
    """The handler of the infer routes. `infer_stream` shares its reader and writer."""

    def __init__(
        self, engine: Engine, deferred: DeferredAnswers, forward: ForwardPattern | None = None
    ) -> None:
        """`forward` says which header fields models see as parameters."""
        self._engine = engine
        self._deferred = deferred
        self.write = RestWriter(engine).write
        self.read = RestReader(engine).read
        self.carrier = replace(HTTP, forward=forward)
        self._take = UnaryInference(
            engine, self.carrier, self.read, self.write, OffLoop(), decoupled=_DECOUPLED
        ).take

    def infer(self, model: str, version: str, request: HttpRequest) -> None:
        """Submits a request; the response follows later. Raises BacklineError if it is refused at once."""
        headers = request.headers
        deadline = deadline_of(headers) if GRPC_TIMEOUT in headers or ENVOY_TIMEOUT in headers else None
        # A raw request cannot be read without knowing the model's input.
        if headers.get(HEADER_LENGTH) == b"0" and self._engine.is_unknown(model, version):
            self._deferred.when_known(model, version, request, partial(self.infer, model, version, request))
            return
        self._take(request, request.body, headers, model, version, deadline)
