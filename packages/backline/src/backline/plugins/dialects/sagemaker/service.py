"""The routes of a SageMaker container: POST /invocations runs the default model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import respond_json
from backline.dialects.bodies.service import BodyService
from backline.dialects.default_model import default_model
from backline.dialects.exchange import HTTP, HttpBody, UnaryInference, deadline_of
from backline.dialects.off_loop import OffLoop
from backline.dialects.open_inference.plan import InferPlan
from backline.dialects.open_inference.rest.messages import HEADER_LENGTH, Decoded, RestReader
from backline.dialects.open_inference.rest.response_writer import RestWriter
from backline.dialects.plugin import Dialect
from backline.dialects.router import Router
from backline.wire.application import HttpRequest
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Buffer

_PATH: Final = "POST /invocations"
#: A field of a request that SageMaker passes through, and of a response that it passes back.
_ATTRIBUTES: Final = b"x-amzn-sagemaker-custom-attributes"
#: The media type of requests of the Open Inference Protocol with tensors in binary form. SageMaker drops the
#: header field with the length of the JSON, so Triton's clients put the length into the media type.
_BINARY: Final = b"application/vnd.sagemaker-triton.binary+json"
_LENGTH: Final = re.compile(rb"(?i)\s*%b\s*;\s*json-header-size=([0-9]{1,19})\s*" % re.escape(_BINARY))
#: Matches a request of the Open Inference Protocol: its `inputs` are a list of objects. An id and parameters
#: may precede them.
_INPUTS: Final = re.compile(rb'(?s)\s*\{.*?"inputs"\s*:\s*\[\s*\{')
_LONGEST_BEGINNING: Final = 4096
_DECOUPLED: Final = (
    "the model sends any number of responses: send its inputs by name, and ask for the responses with Accept:"
    " text/event-stream"
)


class SageMaker(Dialect):
    """Runs the default model, or a named one, on bodies of any media type and on requests of the Open
    Inference Protocol.
    """

    def add_routes(self, router: Router) -> None:
        context = self.context
        engine, deferred = context.engine, context.deferred
        carrier = replace(HTTP, reply=_respond, forward=context.forwarding.http)
        self._run_body = BodyService(engine, deferred, carrier).run
        self._read = RestReader(engine).read
        self._write = RestWriter(engine).write
        self._take = UnaryInference(
            engine, carrier, self._read_document, self._write_document, OffLoop(), decoupled=_DECOUPLED
        ).take
        router.add(
            Scope.INFER,
            "POST",
            "/invocations",
            self._invoke,
            model_of=lambda _: default_model(context, _PATH),
        )
        router.add(Scope.INFER, "POST", "/models/{}/invoke", self._run)
        if router.expects("GET", "/ping"):
            router.add(Scope.HEALTH, "GET", "/ping", self._ping)

    def _ping(self, request: HttpRequest) -> None:
        ready = self.context.engine.ready
        respond_json(request, {"ready": ready}, 200 if ready else 503)

    def _invoke(self, request: HttpRequest) -> None:
        self._run(default_model(self.context, _PATH), request)

    def _run(self, model: str, request: HttpRequest) -> None:
        kind = request.headers.get(b"content-type", b"")
        if _LENGTH.fullmatch(kind) or (
            (not kind or kind.startswith(b"application/json"))
            and _INPUTS.match(bytes(request.body[:_LONGEST_BEGINNING]))
        ):
            self._take(request, request.body, request.headers, model, "", deadline_of(request.headers))
        else:
            self._run_body(model, "", request)

    def _read_document(
        self, body: Buffer, headers: Mapping[bytes, bytes], model: str, version: str, on_loop: bool
    ) -> Decoded:
        length = _LENGTH.fullmatch(headers.get(b"content-type", b""))
        if length is not None:
            headers = {**headers, HEADER_LENGTH: length[1]}
        return self._read(body, headers, model, version, on_loop)

    def _write_document(self, plan: InferPlan, response: InferResponse) -> HttpBody:
        fields, body = self._write(plan, response)
        length = dict(fields).get(HEADER_LENGTH)
        if length is not None:
            fields = ((b"content-type", b"%b;json-header-size=%b" % (_BINARY, length)),)
        return fields, body


def _respond(request: HttpRequest, written: HttpBody) -> None:
    attributes = request.headers.get(_ATTRIBUTES)
    if attributes is not None:
        fields, body = written
        written = (*fields, (_ATTRIBUTES, attributes)), body
    HTTP.reply(request, written)
