"""Limits on everything that a client can make grow."""

from __future__ import annotations

from dataclasses import dataclass

#: What to do about a body that exceeds `max_body_size`; Triton's text for its option of that name.
INCREASE_BODY_LIMIT = "Use --http-max-input-size to increase the limit."
KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a server. Sizes are in bytes, times in seconds, rates per second and connection."""

    #: Request line and header fields (HTTP/1.1); uncompressed header list (HTTP/2).
    max_header_size: int = 64 * KIB
    #: Header fields per request.
    max_header_fields: int = 128
    #: A request body or gRPC message, both as received and after decompression.
    max_body_size: int = 64 * MIB
    #: Compression ratio of request bodies that inflate to more than 32 MiB.
    max_inflation_ratio: float = 200.0
    #: Bodies of unanswered requests plus responses that clients have not read, over all connections.
    max_buffered_bytes: int = 1024 * MIB
    #: Bodies above 1 MiB that are being received, over all connections. Above this, those that arrive fast
    #: wait for each other, except for the oldest.
    max_receiving_bytes: int = 16 * MIB
    #: Open connections, over all listeners.
    max_connections: int = 8192
    #: Requests and unary calls being received or not yet answered, over all connections.
    max_concurrent_requests: int = 4096
    #: Open streaming gRPC calls, over all connections. They may idle for hours, so requests are counted
    #: separately.
    max_streams: int = 4096
    #: The share of each of the three limits above that one client address may use: above 0, up to 1.
    max_peer_share: float = 0.75
    #: Concurrent streams per HTTP/2 connection.
    max_concurrent_streams: int = 128
    #: Time until a connection's first byte, and from a request's first byte until its header is complete.
    header_timeout: float = 10.0
    #: Time without progress while a body is received or a response is sent.
    progress_timeout: float = 30.0
    #: Time without a request on a connection.
    idle_timeout: float = 120.0
    #: Time without a message in either direction of a streaming gRPC call.
    stream_idle_timeout: float = 3600.0
    #: Time for requests in flight to finish when the server stops.
    drain_timeout: float = 30.0
    #: What one connection may use before the others get their turn: bytes, frames, or time.
    bytes_per_turn: int = 256 * KIB
    frames_per_turn: int = 256
    seconds_per_turn: float = 0.002
    #: HTTP/2 frames that carry nothing (SETTINGS, PING, PRIORITY, empty DATA, unknown types) and early
    #: resets: the sustained rate, and how many may exceed it in a burst.
    max_idle_frames_rate: float = 500.0
    idle_frames_burst: int = 2000
    #: Bytes of responses queued for a client that does not read them. Above this, the server stops reading
    #: its requests; at four times this, it closes HTTP/2 connections.
    max_unsent_bytes: int = 1 * MIB
    #: Bytes of responses of one HTTP/2 connection, expected or waiting to be sent. A request whose response
    #: would exceed this waits, unless it is the only one. While responses of all connections together take
    #: more than half of this, the limit of each connection is lower.
    max_held_answer_bytes: int = 8 * MIB
    #: The least rate, averaged over progress_timeout, at which a client must read while more than
    #: max_unsent_bytes are queued for it.
    min_taking_rate: float = 1 * KIB
    listen_backlog: int = 4096
