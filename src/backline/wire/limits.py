"""Everything that a client can make grow, and how far it may."""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a listener. Sizes are in bytes, times in seconds, rates per second and connection."""

    #: Request line and header fields together (HTTP/1.1), an uncompressed header list (HTTP/2).
    max_header_size: int = 64 * KIB
    #: Header fields of one request.
    max_header_fields: int = 128
    #: A request body, before and after it is inflated; also a gRPC message.
    max_body_size: int = 64 * MIB
    #: How many times as large as it was sent a body may become that is larger than 32 MiB when it is inflated.
    max_inflation_ratio: float = 200.0
    #: Request bodies being received or answered, and answers that clients have not taken, over all connections.
    max_buffered_bytes: int = 1024 * MIB
    #: Open connections of all listeners together.
    max_connections: int = 8192
    #: Requests and unary calls that are being received or answered, over all connections.
    max_concurrent_requests: int = 4096
    #: Streaming gRPC calls that are open, over all connections. They may wait for hours, so they take no places of requests.
    max_streams: int = 4096
    #: The share of connections, of requests and of streams that one client address may hold, from above 0 to 1.
    max_peer_share: float = 0.75
    #: Streams of one HTTP/2 connection.
    max_concurrent_streams: int = 128
    #: Until the first byte, and from then until the header block is complete.
    header_timeout: float = 10.0
    #: Without any progress while a body is received or an answer is sent.
    progress_timeout: float = 30.0
    #: On a connection without a request.
    idle_timeout: float = 120.0
    #: On a streaming gRPC call without a message in either direction.
    stream_idle_timeout: float = 3600.0
    #: Given to requests in flight when the server stops.
    drain_timeout: float = 30.0
    #: Bytes or frames of one connection that are handled before the others have their turn, or the time that it takes.
    bytes_per_turn: int = 256 * KIB
    frames_per_turn: int = 256
    seconds_per_turn: float = 0.002
    #: HTTP/2 frames that carry nothing (SETTINGS, PING, PRIORITY, empty DATA, unknown ones...) and streams reset early.
    max_idle_frames_rate: float = 500.0
    idle_frames_burst: int = 2000
    #: Answers queued to a client that does not read; above this the connection is not read, at four times as much it is closed.
    max_unsent_bytes: int = 1 * MIB
    #: Answers of one HTTP/2 connection that are being made or wait to be sent; more requests have to wait (one answer alone may be larger).
    #: While all connections together hold more than this, each may hold less, in proportion.
    max_held_answer_bytes: int = 8 * MIB
    #: What a client that has more than max_unsent_bytes to take must take, in bytes a second over progress_timeout.
    min_taking_rate: float = 1 * KIB
    listen_backlog: int = 4096
