"""An engine inside a serverless function. The platform calls the function once for each request.

Requests go through the dialects as in a server, but no socket is open. All HTTP routes of a server exist,
except those for metrics, for recording and for the web page of the console.
"""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from backline.access.access import UNCONFIGURED, Access
from backline.access.auth_file import AuthDocument, make_policy
from backline.access.keys import environment_has_keys
from backline.dialects.application import build_application
from backline.embedded.embedded import Embedded
from backline.lifecycle.options import LifecycleOptions
from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline_client.client.background_loop import BackgroundLoop
from backline_client.values.errors import InvalidArgument

#: The number of milliseconds between a request's deadline and the time when the platform ends the function.
#: The deadline comes first, so the caller gets the engine's error, which says more than the platform's.
_MARGIN: Final = 200
#: The maximum size of a stream that is collected into one response, in bytes.
_MAX_STREAM: Final = 32 << 20
#: The characters that a percent-encoded path may contain besides letters and digits.
_PATH: Final = "/%:@!$&'()*+,;=~-._"
_TEXT: Final = ("application/json", "text/")


@dataclass(frozen=True, slots=True)
class FunctionResponse:
    """A response: header fields with lower-case names, and the whole body."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class FunctionRequest(HttpRequest):
    """A request whose response completes a future."""

    __slots__ = ("response",)

    def __init__(
        self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes], body: Buffer
    ) -> None:
        super().__init__(method, path, query, headers, body)
        self.response: Future[FunctionResponse] = Future()

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        content = b"" if self.method == b"HEAD" else b"".join(body)
        self.response.set_result(FunctionResponse(status, headers, content))

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        return CollectedStream(self, status, fields)


class CollectedStream(ResponseStream):
    """A stream whose chunks are collected, because the platform accepts only whole responses."""

    def __init__(self, request: FunctionRequest, status: int, fields: Fields) -> None:
        self._request = request
        self._status = status
        self._fields = fields
        self._chunks: list[bytes] = []
        self._size = 0

    async def send(self, chunk: Buffer) -> None:
        if not self.send_now(chunk):
            if not self._request.response.done():
                text = f'{{"error":"the stream exceeds {_MAX_STREAM >> 20} MiB, the limit for a function"}}'
                self._request.respond(500, [(b"content-type", b"application/json")], [text.encode()])
            raise ConnectionResetError

    def send_now(self, chunk: Buffer) -> bool:
        if self._size + len(chunk) > _MAX_STREAM:
            return False
        self._size += len(chunk)
        self._chunks.append(bytes(chunk))
        return True

    def close(self) -> None:
        if not self._request.response.done():
            self._request.respond(self._status, self._fields, self._chunks)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """The engine on a background event loop, with its routes. Created when the models have been loaded.

    `process` is the id of the process that loaded the models, and `seconds` is how long that took.
    """

    process: int
    loop: BackgroundLoop
    embedded: Embedded
    http: Callable[[HttpRequest], None]
    seconds: float


class Function:
    """Serves the models of repositories from within a serverless function.

    >>> function = backline.Function("models/")
    >>> handler = function.load().aws  # AWS Lambda, with a function URL, an API Gateway or a load balancer
    >>> def answer(request): return function.google(request)  # Google Cloud Run functions

    The first request loads the models, because Google's framework forks after it has imported the module.
    Call `load` to load the models earlier.

    Callers may run models and read their metadata. If environment variables define keys (docs/security.md),
    each caller needs one of these keys. Only a caller with BACKLINE_ADMIN_KEY may change what is served, as
    far as the options permit changes.
    """

    def __init__(
        self,
        repositories: str | Path | Sequence[str | Path],
        options: LifecycleOptions | None = None,
        *,
        models: Sequence[str] | None = None,
    ) -> None:
        """The arguments are those of `Embedded`.

        Without `options`, nothing is written outside the system's folder for temporary files.
        """
        place = Path(tempfile.gettempdir()) / "backline"
        self._repositories = repositories
        self._models = models
        self._options = options or LifecycleOptions(
            mode="none", isolate="never", cache_folder=place / "cache", state_folder=place / "state"
        )
        self._loaded: _Loaded | None = None
        self._loading = threading.Lock()

    def load(self) -> Self:
        """Loads the models if this process has not loaded them yet. Returns `self`.

        Raises BacklineError if a repository cannot be read or a model cannot be loaded.
        """
        self._ready()
        return self

    @property
    def seconds(self) -> float:
        """The number of seconds that loading took. Loads the models if they are not loaded yet."""
        return self._ready().seconds

    def _ready(self) -> _Loaded:
        with self._loading:
            # A forked process lacks the thread that runs the event loop, so it must load the models itself.
            if self._loaded is None or self._loaded.process != os.getpid():
                self._loaded = self._load()
            return self._loaded

    def _load(self) -> _Loaded:
        began = perf_counter()
        access = Access(make_policy(AuthDocument()) if environment_has_keys() else UNCONFIGURED)
        embedded = Embedded(self._repositories, self._options, models=self._models, exit_on_error=True)
        loop = BackgroundLoop("backline-function")
        try:
            loop.run(embedded.start())
        except BaseException:
            loop.run(embedded.stop())
            loop.close()
            raise
        # Security: no gate is needed, because the application itself checks the key and the scope of each
        # request, and because the rules for web pages protect only servers on a user's own machine or
        # network.
        http = build_application(embedded.engine, access=access, console=False).http
        return _Loaded(os.getpid(), loop, embedded, http, perf_counter() - began)

    def aws(self, event: Mapping[str, Any], context: Any = None) -> dict[str, Any]:
        """Responds to an AWS Lambda event that carries an HTTP request, in payload format 1.0 or 2.0.

        The request's deadline follows from the function's time limit. Raises InvalidArgument for any other
        event.
        """
        method, path, query = _aws_route(event)
        headers = {name: value for name, value in (event.get("headers") or {}).items() if value is not None}
        if context is not None:
            left = context.get_remaining_time_in_millis() - _MARGIN
            headers.setdefault("grpc-timeout", f"{max(left, 1)}m")
        text = event.get("body") or ""
        body = base64.b64decode(text) if event.get("isBase64Encoded") else text.encode()
        response = self.respond(method, path, query, headers, body)
        as_text = response.headers.get("content-type", "").startswith(_TEXT) and _is_utf8(response.body)
        return {
            "statusCode": response.status,
            "headers": dict(response.headers),
            "body": response.body.decode() if as_text else base64.b64encode(response.body).decode(),
            "isBase64Encoded": not as_text,
        }

    def google(self, request: Any) -> tuple[bytes, int, dict[str, str]]:
        """Responds to a Flask request, as Google Cloud Run functions pass it. Returns the body, the status
        and the header fields.
        """
        raw = request.environ.get("RAW_URI") or request.environ.get("REQUEST_URI") or ""
        path = raw.partition("?")[0] if raw.startswith("/") else quote(request.path, safe=_PATH)
        query = request.query_string.decode("latin-1")
        response = self.respond(request.method, path, query, dict(request.headers), request.get_data())
        return response.body, response.status, dict(response.headers)

    def respond(
        self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes
    ) -> FunctionResponse:
        """Responds to an HTTP request, for platforms with any other interface; `path` is percent-encoded."""
        fields = {
            name.lower().encode(): value.encode("latin-1", "replace") for name, value in headers.items()
        }
        encoding = fields.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            text = b'{"error":"the body is compressed: send it uncompressed, without content-encoding"}'
            return FunctionResponse(415, {"content-type": "application/json"}, text)
        request = FunctionRequest(
            method.encode(),
            path.encode("latin-1", "replace"),
            query.encode("latin-1", "replace"),
            fields,
            body,
        )
        loaded = self._ready()

        async def handled() -> FunctionResponse:
            loaded.http(request)
            return await asyncio.wrap_future(request.response)

        return loaded.loop.run(handled())

    def close(self) -> None:
        """Completes running requests, refuses queued requests, and unloads the models."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None and loaded.process == os.getpid():
            loaded.loop.run(loaded.embedded.stop())
            loaded.loop.close()


def _aws_route(event: Mapping[str, Any]) -> tuple[str, str, str]:
    """Returns the method, the percent-encoded path and the query of an event."""
    context = event.get("requestContext") or {}
    if "rawPath" in event:  # format 2.0: function URLs, HTTP APIs
        path = event["rawPath"]
        stage = context.get("stage", "$default")
        if stage != "$default" and path.startswith(f"/{stage}/"):
            path = path[len(stage) + 1 :]
        return context["http"]["method"], quote(path, safe=_PATH), event.get("rawQueryString", "")
    if "httpMethod" in event:  # format 1.0: REST APIs, load balancers
        query = event.get("multiValueQueryStringParameters") or event.get("queryStringParameters") or {}
        return event["httpMethod"], quote(event["path"], safe=_PATH), urlencode(query, doseq=True)
    raise InvalidArgument(
        "the event carries no HTTP request: expected an event from a function URL, an API Gateway or a load"
        f" balancer, got one with these fields: {', '.join(sorted(map(str, event))) or '(none)'}"
    )


def _is_utf8(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
