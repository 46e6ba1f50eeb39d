"""Routes of the console: its files, the caller's permissions, and the server's activity, traces and log."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from backline.access.identity import Identity
from backline.access.scope import EVERYBODY, Scope
from backline.dialects.answers import encode_json, respond_encoded, respond_json
from backline.dialects.event_stream import EVENT_STREAM, event
from backline.dialects.plugin import Dialect, DialectContext
from backline.dialects.router import Router
from backline.engine.model import Model
from backline.engine.tracing import TraceControl
from backline.plugins.dialects.console.examples import Examples
from backline.wire.application import Fields, HttpRequest, ResponseStream
from backline.wire.peers import address_of
from backline_client.values.control import LogLine
from backline_client.values.errors import BacklineError, NotFound, QuotaExceeded, Unavailable, Unsupported
from backline_client.values.private_places import for_clients

FOLDER = Path(__file__).with_name("static")
PAGE = "index.html"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}
#: The page may load nothing from another host and has no inline script or style
#: (https://www.w3.org/TR/CSP3/). Images and sounds that visitors open are blobs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; media-src blob:;"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors "
)
_FIELDS: Fields = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"microphone=(self), camera=(), geolocation=()"),
    # Files may change with the server's version, so browsers must ask whether their copies are current.
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True, slots=True)
class _File:
    body: bytes
    fields: Fields
    tag: bytes


class ConsoleFiles:
    """Responds with the console's files, which are read when a browser first asks for one."""

    def __init__(self, frame_ancestors: Sequence[str] = ()) -> None:
        """`frame_ancestors` are the origins of pages that may show the console in a frame, in the syntax of
        CSP. By default no page may, to prevent clickjacking.
        """
        self._policy = (_POLICY + (" ".join(frame_ancestors) or "'none'")).encode()
        self._files: dict[str, _File] = {}

    def respond(self, name: str, request: HttpRequest) -> None:
        """Responds with a file. Raises NotFound for an unknown name."""
        if not self._files:
            self._files = {path.name: self._read(path) for path in FOLDER.iterdir() if path.suffix in _TYPES}
        file = self._files.get(name)
        if file is None:
            raise NotFound(f"the console has no file '{name[:64]}'")
        if request.headers.get(b"if-none-match") == file.tag:
            request.respond(304, file.fields)
        else:
            request.respond(200, file.fields, [file.body], compressible=True)

    def _read(self, path: Path) -> _File:
        body = path.read_bytes()
        tag = b'"%b"' % sha256(body).hexdigest()[:32].encode()
        kind = (b"content-type", _TYPES[path.suffix])
        policy = (b"content-security-policy", self._policy)
        return _File(body, (kind, (b"etag", tag), policy, *_FIELDS), tag)


#: Seconds after which an idle stream sends a comment, to find out whether the client is still connected.
_ALIVE = 15.0
#: The maximum number of traces that wait for a reader. Further traces are dropped, to limit memory.
_WAITING = 100
_INTERVAL = 1.0
#: The maximum number of event streams per caller. A page of the console opens up to two.
MOST_WATCHERS = 64
#: Seconds between two reads of the log. New entries wait in the log, which keeps a bounded number.
_LOG_INTERVAL = 0.5


class TraceFeed:
    """Passes traces to all watchers as events. Each trace is encoded once for all of them."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()
        #: Ends the tracing for watchers.
        self._stop: Callable[[], None] = lambda: None

    @contextmanager
    def watch(self, control: TraceControl) -> Iterator[asyncio.Queue[bytes]]:
        """Yields a queue that receives the events during the block. A full queue misses events."""
        if not self._queues:
            self._stop = control.watch(self._note)
        waiting: asyncio.Queue[bytes] = asyncio.Queue(_WAITING)
        self._queues.add(waiting)
        try:
            yield waiting
        finally:
            self._queues.discard(waiting)
            if not self._queues:
                self._stop()

    def _note(self, trace: Mapping[str, Any]) -> None:
        keen = [waiting for waiting in self._queues if not waiting.full()]
        if keen:
            encoded = event(encode_json(trace))
            for waiting in keen:
                waiting.put_nowait(encoded)


class ConsoleDialect(Dialect):
    """Registers the routes of the console."""

    def __init__(self, context: DialectContext) -> None:
        super().__init__(context)
        self._engine = context.engine
        self._deferred = context.deferred
        self._files = ConsoleFiles(context.frame_ancestors)
        self._activity: Any = None
        self._traces = TraceFeed()
        #: The number of event streams by caller: the name of an identity, or an address.
        self._watchers: Counter[tuple[str, str | bytes]] = Counter()
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    def add_routes(self, router: Router) -> None:
        router.add(Scope.PUBLIC, "GET", "/", self._index)
        if self.context.pages:
            router.add(Scope.PUBLIC, "GET", "/console", partial(self._files.respond, PAGE))
            router.add(Scope.PUBLIC, "GET", "/console/{}", self._files.respond)
        router.add(Scope.PUBLIC, "GET", "/v2/access", self._access)
        router.add(Scope.READ, "GET", "/v2/activity", self._show_activity)
        router.add(Scope.READ, "GET", "/v2/traces", self._show_traces)
        router.add(Scope.READ, "GET", "/v2/graph", self._graph)
        # Lines of the log may name any model and quote what clients sent.
        router.add(Scope.ADMIN, "GET", "/v2/logging/lines", self._show_log)
        Examples(self._engine, self._deferred, self.context.recorder).add_routes(router)

    def _index(self, request: HttpRequest) -> None:
        """Sends the page to browsers, which ask for HTML, and the list of routes to all other clients."""
        if self.context.pages and b"text/html" in request.headers.get(b"accept", b""):
            self._files.respond(PAGE, request)
        else:
            respond_json(request, ROUTES)

    def _access(self, request: HttpRequest) -> None:
        """Sends the caller's permissions, so that the console offers only what the caller may do."""
        changeable, reason = self._engine.control is not None, ""
        if self._engine.control is not None:
            try:
                self._engine.control.check_changeable("models")
            except BacklineError as error:
                changeable, reason = False, error.public_message
        respond_json(request, permissions(request.identity) | {"changeable": changeable, "reason": reason})

    def _show_activity(self, request: HttpRequest) -> None:
        if self._activity is None:
            from backline.plugins.dialects.console.activity import Activity

            self._activity = Activity(self._engine)
        if not _wants_events(request):
            self._deferred.answer(
                request, self._activity.frame(0), lambda found: respond_encoded(request, found[1])
            )
            return
        self._run(request, self._stream_activity)

    async def _stream_activity(self, stream: ResponseStream) -> None:
        loop = asyncio.get_running_loop()
        reading, due = 0, loop.time()
        while not self._engine.is_stopping:
            reading, frame = await self._activity.frame(reading)
            await stream.send(event(frame))
            due = max(due + _INTERVAL, loop.time())
            await asyncio.sleep(due - loop.time())

    def _show_traces(self, request: HttpRequest) -> None:
        if self._engine.trace_control is None:
            raise Unsupported("tracing is not supported by this server")
        if _wants_events(request):
            self._run(request, self._stream_traces)
        else:
            respond_json(request, {"traces": self._engine.trace_control.recent()})

    async def _stream_traces(self, stream: ResponseStream) -> None:
        control = self._engine.trace_control
        if control is None:
            return
        with self._traces.watch(control) as waiting:
            # Tells the reader that requests are traced from now on.
            await stream.send(b": watching\n\n")
            quiet = 0.0
            while not self._engine.is_stopping:
                try:
                    trace = await asyncio.wait_for(waiting.get(), _INTERVAL)
                except TimeoutError:
                    quiet += _INTERVAL
                    if quiet >= _ALIVE:
                        quiet = 0.0
                        await stream.send(b": quiet\n\n")
                else:
                    await stream.send(trace)

    def _show_log(self, request: HttpRequest) -> None:
        if self._engine.log_control is None:
            raise Unsupported(
                "this server has no log of its own: its messages go to the log of the program that embeds it"
            )
        if _wants_events(request):
            self._run(request, self._stream_log)
        else:
            respond_encoded(request, _log_document(self._engine.log_control.recent())[0])

    async def _stream_log(self, stream: ResponseStream) -> None:
        control = self._engine.log_control
        last, quiet = 0, _ALIVE
        while control is not None and not self._engine.is_stopping:
            document, number = _log_document(control.recent(last), last)
            if number > last:
                last, quiet = number, 0.0
                await stream.send(event(document))
            elif quiet >= _ALIVE:
                quiet = 0.0
                await stream.send(b": quiet\n\n")
            await asyncio.sleep(_LOG_INTERVAL)
            quiet += _LOG_INTERVAL

    def _run(self, request: HttpRequest, serve: Any) -> None:
        """Streams events until the reader disconnects or the server stops.

        Raises QuotaExceeded if the caller has too many event streams, Unavailable if the server has.
        """
        caller = _caller(request)
        if self._watchers[caller] >= MOST_WATCHERS:
            raise QuotaExceeded(
                f"the caller has {MOST_WATCHERS} open event streams, the maximum; close some of them",
                retry_after=1,
            )
        try:
            request.count_as_stream()
        except ConnectionRefusedError:
            raise Unavailable(
                "the server has too many open streams; try again later", retry_after=1
            ) from None
        stream = request.stream(200, [EVENT_STREAM, (b"cache-control", b"no-store")])
        self._watchers[caller] += 1
        task = asyncio.get_running_loop().create_task(_ended(serve(stream), stream))
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._watchers[caller] -= 1
            if not self._watchers[caller]:
                del self._watchers[caller]

        task.add_done_callback(ended)

        def leave() -> None:
            task.cancel()

        request.on_abandon = leave

    def _graph(self, request: HttpRequest) -> None:
        """Sends the models that use other models: ensembles with their steps, pipelines with their calls."""
        found = [one for model in self._engine.models() if (one := _composition(model))]
        respond_json(request, {"models": found})


def _caller(request: HttpRequest) -> tuple[str, str | bytes]:
    """Returns the key under which a caller's event streams are counted."""
    identity = request.identity
    if identity is not None and not identity.anonymous:
        return "identity", identity.holder
    return "address", address_of((request.peer,))


async def _ended(serving: Coroutine[Any, Any, None], stream: ResponseStream) -> None:
    try:
        await serving
    except ConnectionResetError:
        return  # the reader has disconnected
    stream.close()


def _log_document(lines: Sequence[LogLine], last: int = 0) -> tuple[bytes, int]:
    """Returns log entries as JSON, and the number of the last entry; if there are no entries, this number is
    `last`.

    In the JSON, `lost` is the number of entries after number `last` and before `lines` that are no longer
    kept.
    """
    shown = [
        {"time": one.time, "level": one.level, "logger": one.logger, "text": for_clients(one.text)}
        for one in lines
    ]
    lost = lines[0].number - last - 1 if lines and last else 0
    return encode_json({"lines": shown, "lost": lost}), lines[-1].number if lines else last


def _wants_events(request: HttpRequest) -> bool:
    return b"text/event-stream" in request.headers.get(b"accept", b"")


def permissions(identity: Identity | None) -> dict[str, Any]:
    """Returns who a caller is, and which scopes it has for which models.

    Without identities on the server (`identity` is None), every caller may do everything.
    """
    if identity is None:
        scopes = sorted(scope for scope in Scope if scope not in EVERYBODY)
        return {"name": "", "kind": "", "grants": [{"scopes": scopes, "models": ["*"]}]}
    grants = [
        {"scopes": sorted(grant.scopes - EVERYBODY), "models": list(grant.models)}
        for grant in identity.grants
    ]
    return {"name": identity.name, "kind": identity.kind if identity.name else "", "grants": grants}


def _composition(model: Model) -> dict[str, Any] | None:
    ensemble, calls = model.config.ensemble, model.statistics.calls
    if ensemble is None and not calls:
        return None
    steps = () if ensemble is None else ensemble.steps
    return {
        "name": model.name,
        "version": model.version,
        "kind": "pipeline" if ensemble is None else "ensemble",
        "inputs": [spec.name for spec in model.signature.inputs],
        "outputs": [spec.name for spec in model.signature.outputs],
        "steps": [
            {
                "model": step.model,
                "version": step.version,
                "inputs": dict(step.inputs),
                "outputs": dict(step.outputs),
            }
            for step in steps
        ],
        "calls": [] if ensemble is not None else sorted(calls),
    }


ROUTES = {
    "name": "backline",
    "urls": {
        "server": "/v2",
        "live": "/v2/health/live",
        "ready": "/v2/health/ready",
        "models": "/v2/models",
        "model": "/v2/models/{model}",
        "run": "/models/{model}",
        "infer": "/v2/models/{model}/infer",
        "labels": "/v2/models/{model}/labels",
        "repository": "/v2/repository/index",
        "repositories": "/v2/repository/locations",
        "history": "/v2/repository/history",
        "audit": "/v2/audit",
        "log": "/v2/logging/lines",
        "statistics": "/v2/models/stats",
        "metrics": "/metrics",
        "openapi": "/openapi.json",
        "console": "/console",
    },
}
