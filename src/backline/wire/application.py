"""What the wire hands to an application, and what it expects back: the seam between `wire/` and `dialects/`.

Two kinds of exchange exist, whatever carried them: an HTTP request (over HTTP/1.1 or HTTP/2) and a gRPC call.
Handlers run on the event loop. Unary handlers are plain functions and answer by a callback, then or later; streams are coroutines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview
#: Header fields with lower-case names, in order.
Fields: TypeAlias = Sequence[tuple[bytes, bytes]]


class HttpRequest(ABC):
    """One complete HTTP request, and the way to answer it.

    `headers` has lower-case names; a field that came several times is joined with ", ". Requests may share it: it is not to be changed.
    `body` is already inflated when the client sent gzip or deflate. `path` is as on the wire (percent-encoded), without the query. The wire
    sets `on_abandon` aside and calls it if the client goes away before the answer was given; after that, answers are dropped silently.
    """

    __slots__ = ("body", "headers", "method", "on_abandon", "path", "query")

    def __init__(
        self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes], body: Buffer
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.on_abandon: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The address that the client connected from, "local" over a Unix socket; empty once it is not known any more."""
        return ""

    @abstractmethod
    def respond(self, status: int, fields: Fields, body: Sequence[Buffer] = ()) -> None:
        """Answers with the buffers of `body` one after another, not joined and not copied. To be called once.

        The wire adds content-length, date, and the compression the client accepts; for HEAD it leaves the body out.
        """

    @abstractmethod
    def stream(self, status: int, fields: Fields) -> ResponseStream:
        """Answers with a body of unknown length (chunked on HTTP/1.1). To be called once, instead of `respond`."""


class ResponseStream(ABC):
    """The body of a streamed response."""

    @abstractmethod
    async def send(self, chunk: Buffer) -> None:
        """Sends a chunk; waits while the client does not read. Raises ConnectionResetError if the client is gone."""

    @abstractmethod
    def close(self) -> None:
        """Ends the body."""


class RpcError(Exception):
    """A gRPC status other than OK, to be raised by stream handlers. `code` is the number of the status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call(ABC):
    """One gRPC call.

    `metadata` has lower-case names, values as on the wire (a `-bin` value is base64); `deadline` is in seconds of time.monotonic(), from
    grpc-timeout. The wire answers DEADLINE_EXCEEDED by itself when the deadline passes, and calls `on_abandon` once when the call ended
    before the application ended it (reset, disconnect, deadline); after that, answers are dropped silently.
    """

    __slots__ = ("deadline", "metadata", "on_abandon")

    def __init__(self, metadata: Mapping[bytes, bytes], deadline: float | None) -> None:
        self.metadata = metadata
        self.deadline = deadline
        self.on_abandon: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The address that the client connected from, "local" over a Unix socket; empty once it is not known any more."""
        return ""


class UnaryCall(Call):
    """A call with one request message and one response message."""

    __slots__ = ()

    @abstractmethod
    def reply(self, message: Buffer) -> None:
        """Ends the call with OK and this message. To be called once."""

    @abstractmethod
    def fail(self, code: int, message: str, trailers: Fields = ()) -> None:
        """Ends the call with a status; `trailers` are further trailing metadata, such as grpc-status-details-bin. To be called once."""


class StreamCall(Call):
    """A call whose requests, responses or both are streams. The handler's return ends it with OK, an RpcError with that status."""

    __slots__ = ()

    @abstractmethod
    async def receive(self) -> Buffer | None:
        """The next request message; None after the last. Raises asyncio.CancelledError when the call was cancelled."""

    @abstractmethod
    async def send(self, message: Buffer) -> None:
        """Sends a response message; waits while flow control or the socket hold it back."""


@dataclass(frozen=True, slots=True)
class UnaryMethod:
    """A unary gRPC method: `handler(call, message)` answers through the call, then or later. It may raise RpcError.

    `scope` is what it lets a caller do, which the gate knows and the wire does not read.
    """

    handler: Callable[[UnaryCall, Buffer], None]
    scope: str


@dataclass(frozen=True, slots=True)
class StreamMethod:
    """A streaming gRPC method of any kind: a coroutine over a StreamCall. `scope` is as for a unary one."""

    handler: Callable[[StreamCall], Awaitable[None]]
    scope: str


#: Fields that only browsers send. A request with any is shown to the gate; so is one whose Host is not in `Gate.own_hosts`.
BROWSER_FIELDS = frozenset((b"origin", b"sec-fetch-site", b"referer"))


class Gate(ABC):
    """Decides by the head of a request whether it reaches the application. The wire asks before it receives the body.

    The wire may remember the answer for an equal head, and need not ask where Host is in `own_hosts` and none of BROWSER_FIELDS is there.
    """

    own_hosts: set[bytes]

    @abstractmethod
    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], *, local: bool
    ) -> str | None:
        """Why the request is refused (403, PERMISSION_DENIED); None to let it in. `local` is a connection over a Unix socket."""


@dataclass(frozen=True, slots=True)
class Application:
    """All that the wire needs to serve.

    `http` answers an HTTP request; it must not raise. `rpc` maps a gRPC path (b"/package.Service/Method") to its method.
    `render_error(status, message)` gives the content type and the body of an error that the wire itself finds (400, 403,
    408, 413, 431, 503). `gate` refuses requests by their heads. `is_vital(path)` names HTTP requests and unary calls that
    are answered under any load, such as health probes: refusing those would have an orchestrator restart a server that is
    merely busy. They must be cheap.
    """

    http: Callable[[HttpRequest], None]
    rpc: Mapping[bytes, UnaryMethod | StreamMethod]
    render_error: Callable[[int, str], tuple[bytes, bytes]]
    gate: Gate
    is_vital: Callable[[bytes], bool] = lambda path: False
