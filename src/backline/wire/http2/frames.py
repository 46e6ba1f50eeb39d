"""HTTP/2 frames: the numbers of RFC 9113 and the frames a server sends."""

from __future__ import annotations

from struct import Struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = (
    range(10)
)

END_STREAM = ACK = 0x01
END_HEADERS = 0x04
PADDED = 0x08
PRIORITISED = 0x20

(
    NO_ERROR,
    PROTOCOL_ERROR,
    INTERNAL_ERROR,
    FLOW_CONTROL_ERROR,
    SETTINGS_TIMEOUT,
    STREAM_CLOSED,
    FRAME_SIZE_ERROR,
    REFUSED_STREAM,
    CANCEL,
    COMPRESSION_ERROR,
    CONNECT_ERROR,
    ENHANCE_YOUR_CALM,
) = range(12)

(
    HEADER_TABLE_SIZE,
    ENABLE_PUSH,
    MAX_CONCURRENT_STREAMS,
    INITIAL_WINDOW_SIZE,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
) = range(1, 7)

MAX_WINDOW = 2**31 - 1
DEFAULT_WINDOW = 65_535
MIN_MAX_FRAME_SIZE = 16_384

#: (length << 8 | type, flags, stream): the nine octets in front of every frame.
FRAME_HEADER = Struct(">IBI")
_UINT32 = Struct(">I")
_SETTING = Struct(">HI")
_RST_STREAM = Struct(">IBII")
_GOAWAY = Struct(">IBIII")


class ConnectionFailure(Exception):
    """The connection must end with GOAWAY and this error code (RFC 9113, section 5.4.1)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class StreamFailure(Exception):
    """The stream must end with RST_STREAM and this error code (RFC 9113, section 5.4.2)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return FRAME_HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, _UINT32.pack(increment))


def rst_stream(stream: int, code: int) -> bytes:
    return _RST_STREAM.pack(4 << 8 | RST_STREAM, 0, stream, code)


def goaway(last_stream: int, code: int, reason: bytes = b"") -> bytes:
    return _GOAWAY.pack((8 + len(reason)) << 8 | GOAWAY, 0, 0, last_stream, code) + reason


def header_frames(stream: int, block: bytes, flags: int, max_frame_size: int) -> bytes:
    """A header block as one HEADERS frame, followed by CONTINUATION frames where the peer's frame size asks for them."""
    if len(block) <= max_frame_size:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[at : at + max_frame_size] for at in range(0, len(block), max_frame_size)]
    out = [frame(HEADERS, flags, stream, pieces[0])]
    out += [frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1]]
    out.append(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
    return b"".join(out)
