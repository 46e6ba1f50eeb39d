"""TorchServe's inference API over REST: /predictions/{model}, /explanations/{model} and /ping."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple, TypeAlias

from msgspec.structs import replace

from backline.access.scope import Scope
from backline.dialects.answers import hidden_error, quota_fields, respond_error
from backline.dialects.event_stream import EventStreams
from backline.dialects.exchange import Carrier, RequestIntake, UnaryInference, deadline_of
from backline.dialects.off_loop import OffLoop
from backline.dialects.plugin import DialectContext
from backline.dialects.router import Router
from backline.engine.responses import Responses
from backline.engine.tracing import Trace
from backline.plugins.dialects.torchserve.errors import (
    PredictionFailed,
    error_form,
    find_ready,
    no_worker,
    pretty,
)
from backline.plugins.dialects.torchserve.requests import (
    EXPLAIN,
    UNCACHED,
    ArchivePlan,
    Plan,
    Reply,
    RequestReader,
    content_of,
    is_archive,
    write_reply,
)
from backline.wire.application import Buffer, HttpRequest, ResponseStream
from backline_client.values.errors import (
    BacklineError,
    Cancelled,
    DeadlineExceeded,
    QuotaExceeded,
    Unavailable,
    Unsupported,
)
from backline_client.values.messages import InferRequest

_JSON = (b"content-type", b"application/json")
_STREAMS = (
    "the model sends any number of responses: call it over the Open Inference Protocol or plain HTTP, which"
    " stream them"
)
_Take: TypeAlias = Callable[[HttpRequest, Buffer, Mapping[bytes, bytes], str, str, float | None], None]


def respond_pretty(request: HttpRequest, document: object, status: int = 200) -> None:
    request.respond(status, (_JSON, *UNCACHED), [pretty(document)])


def _respond(request: HttpRequest, reply: Reply) -> None:
    identity = request.identity
    fields = reply.fields
    if identity is not None and identity.meter is not None and identity.meter.low:
        fields = (*fields, *quota_fields(identity.meter))
    request.respond(reply.status, fields, [reply.body], compressible=True)


def _fail(request: HttpRequest, error: BacklineError) -> None:
    failed = error.http_status == 500
    respond_error(request, PredictionFailed(error) if failed else error)


def _fail_archive(request: HttpRequest, error: BacklineError) -> None:
    respond_error(request, of_archive(error))


def of_archive(error: BacklineError) -> BacklineError:
    """Returns the error of a request to an archive, whose handler chooses statuses itself."""
    kept = isinstance(error, (Unavailable, DeadlineExceeded, Cancelled))
    return error if kept else PredictionFailed(error)


class _Takes(NamedTuple):
    """Take the requests of a route to archives, to archives that stream, and to all other models."""

    model: _Take
    archive: _Take
    stream: _Take


class InferenceService:
    """Registers the routes of the inference API."""

    def __init__(self, context: DialectContext) -> None:
        self._engine = context.engine
        self._deferred = context.deferred
        self._off_loop = OffLoop()
        self._streams = EventStreams(self._off_loop)
        self._carrier: Carrier[HttpRequest, Reply] = Carrier(
            "HTTP", False, _respond, _fail, context.forwarding.http
        )
        self._to_archives: Carrier[HttpRequest, Reply] = replace(self._carrier, fail=_fail_archive)

    def add_routes(self, router: Router) -> None:
        add = partial(router.add, errors=error_form)
        add(Scope.HEALTH, "GET", "/ping", self._ping)
        for task, explain in (("predictions", "False"), ("explanations", "True")):
            reader = RequestReader(self._engine, {EXPLAIN: explain, "url_path": ""})
            takes = _Takes(
                self._unary(reader, self._carrier),
                self._unary(reader, self._to_archives),
                RequestIntake(
                    self._engine, self._to_archives, reader.read, self._stream, self._off_loop
                ).take,
            )
            run = partial(self._run, takes)
            for method in ("POST", "PUT"):  # `curl -T` sends PUT
                add(Scope.INFER, method, f"/{task}/{{}}", run, "", before_model=task)
                add(Scope.INFER, method, f"/{task}/{{}}/{{}}", run, before_model=task)

    def _ping(self, request: HttpRequest) -> None:
        if self._engine.ready:
            respond_pretty(request, {"status": "Healthy"})
        else:
            respond_pretty(request, {"status": "Unhealthy"}, 500)

    def _unary(self, reader: RequestReader, carrier: Carrier[HttpRequest, Reply]) -> _Take:
        return UnaryInference(
            self._engine, carrier, reader.read, write_reply, self._off_loop, decoupled=_STREAMS
        ).take

    def _run(self, takes: _Takes, name: str, version: str, request: HttpRequest) -> None:
        find_ready(self._engine, name, version)

        def known() -> None:
            model = find_ready(self._engine, name, version)
            take = takes.model
            if is_archive(model):
                take = takes.stream if model.decoupled else takes.archive
            try:
                take(request, request.body, request.headers, name, version, deadline_of(request.headers))
            except QuotaExceeded:
                raise
            except Unavailable as error:
                raise no_worker(name, error) from None

        self._deferred.when_known(name, version, request, known)

    def _stream(
        self,
        request: HttpRequest,
        deadline: float | None,
        trace: Trace | None,
        asked: InferRequest,
        plan: Plan,
    ) -> None:
        if not isinstance(plan, ArchivePlan):
            raise Unsupported(_STREAMS)
        admit = None if request.identity is None else request.identity.follow
        responses = self._engine.stream(asked, deadline, trace=trace, admit=admit, fields=request.headers)
        self._streams.run(request, asked.model_name, responses, _send_all(request, plan, responses))


async def _send_all(request: HttpRequest, plan: ArchivePlan, responses: Responses) -> None:
    """Sends the results of a handler one after the other. Raises ConnectionResetError if the client closes
    the connection first.
    """
    stream: ResponseStream | None = None
    try:
        async for response in responses:
            if stream is None:
                reply = write_reply(plan, response)
                stream = request.stream(reply.status, reply.fields)
            await stream.send(content_of(response))
    except BacklineError as error:
        if stream is None:
            _fail_archive(request, error)
            return
        # The status has been sent, so only an end that is missing tells the client of the failure.
        hidden_error(f"a stream of model '{responses.ticket.request.model_name}'", error)
        return
    if stream is None:
        request.respond(200, UNCACHED)
    else:
        stream.close()
