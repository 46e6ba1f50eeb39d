"""The interface between `wire/` and `dialects/`: what the wire passes to an application and expects in
return.

There are two kinds of exchange: an HTTP request (over HTTP/1.1 or HTTP/2) and a gRPC call. Handlers run on
the event loop. Unary handlers are plain functions that respond, immediately or later, through the object
passed to them; stream handlers are coroutines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from backline.wire.limits import BodyLimit

Buffer: TypeAlias = bytes | bytearray | memoryview
#: Header fields with lower-case names, in order.
Fields: TypeAlias = Sequence[tuple[bytes, bytes]]


class Certificate(Struct, frozen=True):
    """A client certificate that the handshake has verified.

    `subject` has the attributes of the subject, such as "CN=app", and `names` the subject alternative names,
    such as "DNS:app.example.org". `expires` is in seconds of time.time().
    """

    subject: frozenset[str]
    names: frozenset[str]
    expires: float


class Ingress(Struct, frozen=True):
    """How a connection reached the server. All requests of a connection share one Ingress.

    `local` is true for a Unix socket, and `metrics_only` for a port that serves only metrics and health
    checks. `certificate` is None if the client has presented none.
    """

    local: bool = False
    metrics_only: bool = False
    certificate: Certificate | None = None


#: The ingress of most connections: TCP, without a client certificate.
REMOTE = Ingress()


class SpelledFields(dict[bytes, bytes]):
    """Header fields with a record of how the client spelled the names; see Application.keeps_spelling."""

    def __init__(self) -> None:
        super().__init__()
        #: The names as received, by their lower-case form.
        self.spelling: dict[bytes, bytes] = {}


class HttpRequest(ABC):
    """One complete HTTP request, and the means to respond to it.

    `headers` has lower-case names; repeated fields are joined with ", ". Requests may share the mapping, so
    it must not be modified. `path` is percent-encoded as received, without the query. `body` has been
    decompressed if the client sent gzip or deflate. The wire calls `on_abandon` if the client disconnects
    before the response is sent; responses made afterwards are silently dropped.
    """

    __slots__ = ("body", "error_form", "headers", "identity", "method", "on_abandon", "path", "query")
    #: The sender of the request. Only the application uses this attribute.
    identity: Any
    #: How errors are written in a response. Only the application uses this attribute.
    error_form: Any

    def __init__(
        self, method: bytes, path: bytes, query: bytes, headers: Mapping[bytes, bytes], body: Buffer
    ) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body
        self.identity = None
        self.error_form = None
        self.on_abandon: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The client's address, "local" for a Unix socket, or "" if the address is no longer known."""
        return ""

    @property
    def certificate(self) -> Certificate | None:
        """The client's certificate, or None if the client has presented none or is no longer known."""
        return None

    @abstractmethod
    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        """Sends a response whose body is the concatenation of `body`, without copying large buffers.

        Call this once. The wire adds content-length and date, compresses a `compressible` body that is not
        small if the client accepts compression, and omits the body for HEAD.
        """

    @abstractmethod
    def stream(self, status: int, fields: Fields) -> ResponseStream:
        """Starts a response of unknown length (chunked in HTTP/1.1). Call this once, instead of `respond`."""

    def count_as_stream(self) -> None:
        """Makes the request count as a stream, and not as a request in flight. Call this before `stream` if
        the response may last for hours, such as one that reports events until the client disconnects.

        The client is disconnected if it leaves part of the response unread for `progress_timeout`, even if it
        reads other parts. Raises ConnectionRefusedError if too many streams are open.
        """
        return

    def accept_websocket(self, protocol: bytes = b"") -> WebSocket | None:
        """Accepts a WebSocket handshake, in place of `respond`. `protocol` is one of the subprotocols that
        the client offered, or b"" for none.

        Returns None and does nothing if the request is not a valid handshake or came over HTTP/2. Raises
        ConnectionRefusedError if too many streams are open. `on_abandon` is called when the connection ends.
        """
        return None


class ResponseStream(ABC):
    """The body of a streamed response."""

    @abstractmethod
    async def send(self, chunk: Buffer) -> None:
        """Sends a chunk. Waits while the client does not read. Raises ConnectionResetError on disconnect."""

    def send_now(self, chunk: Buffer) -> bool:
        """Sends a chunk immediately if that is possible. Returns False, and sends nothing, if `send` might
        wait or raise.
        """
        return False

    @abstractmethod
    def close(self) -> None:
        """Ends the response."""


class WebSocket(ABC):
    """A WebSocket connection (RFC 6455), which carries text and binary messages in both directions."""

    @abstractmethod
    async def receive(self) -> str | bytes | None:
        """Returns the next message. Returns None once the connection has ended or the server is stopping.

        While a message waits for `receive`, nothing more is read from the client, so a client can send no
        faster than the application receives.
        """

    @abstractmethod
    async def send(self, message: str | Buffer) -> None:
        """Sends a message. Waits while the client does not read. Raises ConnectionResetError if the
        connection has ended.
        """

    @abstractmethod
    def close(self, code: int = 1000, reason: str = "") -> None:
        """Ends the connection with a close code (RFC 6455, section 7.4.1) and a reason."""


class RpcError(Exception):
    """Raised to end a gRPC call with a status other than OK. `code` is the numeric status."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class Call(ABC):
    """One gRPC call.

    `metadata` has lower-case names and values as received (a `-bin` value is base64). `deadline`, from
    grpc-timeout, is in seconds of time.monotonic(); when it passes, the wire replies DEADLINE_EXCEEDED. The
    wire calls `on_abandon` once if the call ends before the application has ended it (reset, disconnect,
    deadline); replies made afterwards are silently dropped.
    """

    __slots__ = ("deadline", "identity", "metadata", "on_abandon")
    #: The caller. Only the application uses this attribute.
    identity: Any

    def __init__(self, metadata: Mapping[bytes, bytes], deadline: float | None) -> None:
        self.metadata = metadata
        self.identity = None
        self.deadline = deadline
        self.on_abandon: Callable[[], None] | None = None

    @property
    def peer(self) -> str:
        """The client's address, "local" for a Unix socket, or "" if the address is no longer known."""
        return ""

    @property
    def certificate(self) -> Certificate | None:
        """The client's certificate, or None if the client has presented none."""
        return None


class UnaryCall(Call):
    """A call with one request message and one response message."""

    __slots__ = ()

    @abstractmethod
    def reply(self, message: Buffer, *rest: Buffer) -> None:
        """Ends the call with OK and one message: the concatenation of `message` and `rest`, whose lengths
        must be their numbers of bytes. Call this once.
        """

    @abstractmethod
    def fail(self, code: int, message: str, trailers: Fields = ()) -> None:
        """Ends the call with a status. Call this once.

        `trailers` is additional trailing metadata, such as grpc-status-details-bin.
        """


class StreamCall(Call):
    """A call that streams requests, responses or both.

    The call ends with OK when its handler returns, or with the status of an RpcError that the handler raises.
    """

    __slots__ = ()

    @abstractmethod
    async def receive(self) -> Buffer | None:
        """Returns the next request message, or None after the last. Raises CancelledError if the call has
        ended, and RpcError if the message cannot be inflated.
        """

    @abstractmethod
    async def send(self, message: Buffer) -> None:
        """Sends a response message. Waits for flow control and for the socket. Raises CancelledError if the
        call has ended.
        """


class Denial(Struct, frozen=True):
    """The reason why a request is refused: the HTTP status and fields, or the gRPC status code."""

    status: int
    grpc_code: int
    message: str
    fields: Fields = ()
    #: The refused client, for the application's use.
    identity: str = ""


#: The size limit of a body larger than `uploads.FREE`; None for the server's own limit. The limit must be at
#: least `uploads.FREE`. With a Denial, the request is refused, and the rest of the body is not received.
Bound: TypeAlias = BodyLimit | Denial | None


class UnaryMethod(Struct, frozen=True):
    """A unary gRPC method: `handler(call, message)` replies through the call, immediately or later.

    The handler may raise RpcError. `limit_of(call, beginning)` returns the limit of a large message, given
    its first bytes. The wire does not use the other fields: `scope` is the permission that callers need, and
    `model_of` reads the name of the model from a message about a single model. If the message names no model,
    the caller needs the permission for every model or, with `lists`, for at least one model.
    """

    handler: Callable[[UnaryCall, Buffer], None]
    scope: str
    model_of: Callable[[Buffer], str] | None = None
    lists: bool = False
    limit_of: Callable[[Call, Buffer], Bound] | None = None


class StreamMethod(Struct, frozen=True):
    """A streaming gRPC method: a coroutine that takes a StreamCall.

    Callers need the permission `scope` for every model. With `lists`, they need it for at least one model,
    and the method shows only the models that the caller may use. `limit_of` is as for a UnaryMethod, and is
    called for each large message.
    """

    handler: Callable[[StreamCall], Awaitable[None]]
    scope: str
    lists: bool = False
    limit_of: Callable[[Call, Buffer], Bound] | None = None


#: Header fields that usually only browsers send. A request with any of them must pass the gate.
BROWSER_FIELDS = frozenset((b"origin", b"sec-fetch-site", b"referer"))


class Gate(ABC):
    """Decides from a request's head, before the body is received, whether the request may reach the
    application.

    The decision to admit a request must depend only on the head and the ingress, because the wire admits
    identical heads on the same connection without asking the gate again. The application checks again
    whatever may have changed since, such as the validity of a key. After a refusal, the gate is always asked
    again. Over HTTP/1.1 the wire may also skip the gate if the request's Host is in `own_hosts` and the
    request has none of the BROWSER_FIELDS, unless the port serves only metrics.
    """

    own_hosts: set[bytes]

    @abstractmethod
    def refusal(
        self, method: bytes, path: bytes, headers: Mapping[bytes, bytes], ingress: Ingress
    ) -> Denial | None:
        """Returns why the request is refused, or None to admit it."""

    @abstractmethod
    def refused(self, denial: Denial, method: bytes, path: bytes, peer: str) -> None:
        """Called for every request that `refusal` has refused."""

    @abstractmethod
    def sharing(self, headers: Mapping[bytes, bytes]) -> Fields:
        """Returns the header fields without which a web page could not read the refusal of its request."""


async def _nothing() -> None:
    """The default for `Application.close`."""


class Application(Struct, frozen=True):
    """Everything that the wire needs to know about an application to serve it.

    `http` responds to an HTTP request; it must not raise. `rpc` maps gRPC paths (b"/package.Service/Method")
    to methods. `render_error(status, message)` returns the content type and body of an error detected by the
    wire (such as 400, 413 or 503). `gate` decides which requests are admitted. `is_vital(method, path)`
    returns whether a request, such as a health probe, is served under any load: an orchestrator would restart
    a busy server that refuses its probes. Vital requests must be cheap; over HTTP, they are answered without
    their body. With `keeps_spelling`, the headers of HTTP/1.1 requests are SpelledFields.
    `takes_websocket(path)` returns whether a path accepts WebSocket handshakes; the wire refuses them on any
    other path. `body_limit(method, path)` returns the limit of a large body.
    `close` ends what the application does besides responding, once the server has stopped.
    """

    http: Callable[[HttpRequest], None]
    rpc: Mapping[bytes, UnaryMethod | StreamMethod]
    render_error: Callable[[int, str], tuple[bytes, bytes]]
    gate: Gate
    is_vital: Callable[[bytes, bytes], bool] = lambda method, path: False
    keeps_spelling: bool = False
    takes_websocket: Callable[[bytes], bool] = lambda path: False
    body_limit: Callable[[bytes, bytes], Bound] = lambda method, path: None
    close: Callable[[], Awaitable[None]] = _nothing
