"""Limits on every resource that a client can make the server use."""

from __future__ import annotations

from msgspec import Struct

#: The advice in the error for a body that exceeds `max_body_size`, in Triton's words: both servers have the
#: option that it names.
INCREASE_BODY_LIMIT = "Use --http-max-input-size to increase the limit."
KIB = 1024
MIB = 1024 * KIB


class BodyLimit(Struct, frozen=True):
    """The maximum size of a request body or gRPC message in bytes, with text for the error that a larger body
    causes.

    `whose` is the part of the error text that says what the limit applies to, such as " for model 'add1'".
    `advice` says what the client can do.
    """

    size: int
    whose: str = ""
    advice: str = INCREASE_BODY_LIMIT

    def exceeded(self, what: str) -> str:
        return f"{what} exceeds the maximum of {self.size} bytes{self.whose}. {self.advice}"


class Limits(Struct, frozen=True):
    """The limits of a server. Sizes are in bytes, times in seconds, and rates per second and connection."""

    #: The maximum size of the request line and header fields (HTTP/1.1), or of the uncompressed header list
    #: (HTTP/2).
    max_header_size: int = 64 * KIB
    #: The maximum number of header fields per request.
    max_header_fields: int = 128
    #: The maximum size of a request body or gRPC message, both as received and after decompression.
    max_body_size: int = 64 * MIB
    #: The maximum compression ratio of request bodies that inflate to more than 32 MiB.
    max_inflation_ratio: float = 200.0
    #: The maximum total size of the bodies of unanswered requests and of responses that clients have not read
    #: yet, over all connections.
    max_buffered_bytes: int = 1024 * MIB
    #: The maximum total size of bodies above 1 MiB that are being received, over all connections. Above this
    #: limit, bodies that arrive fast have to wait for their turn. The oldest body never waits.
    max_receiving_bytes: int = 16 * MIB
    #: The maximum number of open connections, over all listeners.
    max_connections: int = 8192
    #: The maximum number of requests and unary calls being received or not yet answered, over all
    #: connections.
    max_concurrent_requests: int = 4096
    #: The maximum number of vital requests, such as health probes, that are not yet answered, over all
    #: connections, of which one client address may have a quarter. They are counted separately from requests.
    #: Above this, the oldest of them gives way to the newest.
    max_vital_requests: int = 1024
    #: The maximum number of open streaming gRPC calls, WebSockets and event streams of the console, over all
    #: connections. They are counted separately from requests, because they may be idle for hours.
    max_streams: int = 4096
    #: The maximum share of `max_connections`, `max_concurrent_requests` and `max_streams` that one client
    #: address may use: above 0, up to 1.
    max_peer_share: float = 0.75
    #: The maximum number of concurrent streams per HTTP/2 connection.
    max_concurrent_streams: int = 128
    #: The maximum time from accepting a connection until its first byte arrives, and from the first byte of a
    #: request until its header is complete.
    header_timeout: float = 10.0
    #: The maximum time without progress while a body is received or a response is sent.
    progress_timeout: float = 30.0
    #: The maximum time that a connection may be open without a request.
    idle_timeout: float = 120.0
    #: The maximum time that a streaming gRPC call or a WebSocket may go without a message in either
    #: direction.
    stream_idle_timeout: float = 3600.0
    #: The maximum time that requests in flight have to finish when the server stops.
    drain_timeout: float = 30.0
    #: The maximum number of bytes that the server handles for one connection before other connections get
    #: their turn.
    bytes_per_turn: int = 256 * KIB
    #: The maximum number of HTTP/2 frames that the server handles for one connection before other connections
    #: get their turn.
    frames_per_turn: int = 256
    #: The maximum time that the server spends on one connection before other connections get their turn.
    seconds_per_turn: float = 0.001
    #: The maximum average rate of idle frames, beyond those that answered requests and sent DATA frames
    #: allow. Idle frames are HTTP/2 frames that carry nothing or almost nothing (such as RST_STREAM,
    #: WINDOW_UPDATE, SETTINGS, PING and tiny DATA frames), and messages below 16 bytes in streaming gRPC
    #: calls.
    max_idle_frames_rate: float = 500.0
    #: The maximum number of idle frames in a burst.
    idle_frames_burst: int = 2000
    #: The maximum number of bytes queued for a client that does not read its responses. Above this, the
    #: server stops reading the client's requests; at four times this, it closes HTTP/2 connections.
    max_unsent_bytes: int = 1 * MIB
    #: The maximum total size of one HTTP/2 connection's responses, both those waiting to be sent and those
    #: expected for requests in flight. A request whose response would exceed this limit waits, unless no
    #: other response is expected. While the waiting responses of all connections together take more than half
    #: of this limit, the limit of each connection is lower.
    max_held_answer_bytes: int = 8 * MIB
    #: The minimum rate, averaged over progress_timeout, at which a client must read while more than
    #: max_unsent_bytes are queued for it.
    min_taking_rate: float = 1 * KIB
    #: The minimum rate, averaged over progress_timeout, at which a client must send the body of a request or
    #: a message that it has begun.
    min_sending_rate: float = 256.0
    listen_backlog: int = 4096

    @property
    def least_taken(self) -> int:
        """The number of bytes that a client must read within progress_timeout, at least 1."""
        return max(1, int(self.min_taking_rate * self.progress_timeout))

    @property
    def least_sent(self) -> int:
        """The number of bytes of a body that a client must send within progress_timeout, at least 1."""
        return max(1, int(self.min_sending_rate * self.progress_timeout))
