"""HTTP/2 frames (RFC 9113): constants, the frames a server sends, settings, and the idle-frame allowance."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

from hpack.table import HeaderTable

from backline.wire import http2
from backline.wire.application import Buffer
from backline.wire.limits import KIB, MIB, Limits

PREFACE = http2.PREFACE

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

#: (length << 8 | type, flags, stream): the nine octets that start every frame.
FRAME_HEADER = Struct(">IBI")
_UINT32 = Struct(">I")
_SETTING = Struct(">HI")
_RST_STREAM = Struct(">IBII")
_GOAWAY = Struct(">IBIII")


class _Failure(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class ConnectionFailure(_Failure):
    """Raised to end the connection with GOAWAY and the error code `code` (RFC 9113, section 5.4.1)."""


class StreamFailure(_Failure):
    """Raised to end the stream with RST_STREAM and the error code `code` (RFC 9113, section 5.4.2)."""


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
    """Encodes a header block as a HEADERS frame, with CONTINUATION frames if it exceeds the frame size."""
    if len(block) <= max_frame_size:
        return frame(HEADERS, flags | END_HEADERS, stream, block)
    pieces = [block[at : at + max_frame_size] for at in range(0, len(block), max_frame_size)]
    out = [frame(HEADERS, flags, stream, pieces[0])]
    out += [frame(CONTINUATION, 0, stream, piece) for piece in pieces[1:-1]]
    out.append(frame(CONTINUATION, END_HEADERS, stream, pieces[-1]))
    return b"".join(out)


#: The MAX_FRAME_SIZE that the server announces when a body above LARGE_BODY bytes arrives, so that the client
#: needs few frames. The server does not announce it earlier, because the size applies to HEADERS too.
LARGE_MAX_FRAME_SIZE = 1 * MIB
LARGE_BODY = 64 * KIB
#: The receive window of a stream, until the length of its message is known and a larger window is granted.
OUR_STREAM_WINDOW = 1 * MIB
#: The receive window of a connection.
OUR_CONNECTION_WINDOW = 16 * MIB
#: The maximum payload, in bytes, of a SETTINGS frame or other control frame that arrives in several reads.
#: The RFC defines only six settings, of six octets each.
MAX_SETTINGS_FRAME = 4 * KIB


def server_preface(limits: Limits) -> bytes:
    """Returns the first frames that a server sends: its SETTINGS and the window of the connection."""
    announced = settings(
        {
            MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
            INITIAL_WINDOW_SIZE: OUR_STREAM_WINDOW,
            MAX_HEADER_LIST_SIZE: limits.max_header_size,
        }
    )
    return announced + window_update(0, OUR_CONNECTION_WINDOW - DEFAULT_WINDOW)


def parse_settings(payload: bytes) -> list[tuple[int, int]]:
    """Returns the settings in a frame, in order. Raises ConnectionFailure if the frame is malformed or a
    value is out of bounds.
    """
    if len(payload) % 6:
        raise ConnectionFailure(FRAME_SIZE_ERROR, "the length of SETTINGS is not a multiple of 6")
    known = []
    for key, value in _SETTING.iter_unpack(payload):
        if key == ENABLE_PUSH and value > 1:
            raise ConnectionFailure(PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if key == INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFailure(FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is above 2^31-1")
        if key == MAX_FRAME_SIZE and not MIN_MAX_FRAME_SIZE <= value < 1 << 24:
            raise ConnectionFailure(PROTOCOL_ERROR, "MAX_FRAME_SIZE is not between 2^14 and 2^24-1")
        known.append((key, value))
    return known


#: The number of idle frames that a client may send for each answered request, and for each DATA frame that
#: the server has sent. Clients respond to DATA with WINDOW_UPDATE for the stream and the connection, and with
#: PING to measure the bandwidth.
PER_REQUEST = 6
PER_DATA_FRAME = 4


class FrameAllowance:
    """Limits how many idle frames, which carry nothing, a client may send: a token bucket, refilled over
    time, for each request that the server answers, and for each DATA frame that it sends.

    The clock is read only when no tokens are left, so usually a frame costs only a subtraction.
    """

    __slots__ = ("_burst", "_credited", "_last", "_rate", "_tokens")

    def __init__(self, limits: Limits) -> None:
        self._rate = limits.max_idle_frames_rate
        self._burst = float(limits.idle_frames_burst)
        self._tokens = self._burst
        self._last = time.monotonic()
        self._credited = 0

    def spend(self, cost: float, requests: int, data_frames: int) -> None:
        """Takes tokens. Raises ConnectionFailure if the client sends too many idle frames.

        `requests` counts the requests answered so far, and `data_frames` the DATA frames sent.
        """
        self._tokens -= cost
        if self._tokens >= 0:
            return
        now = time.monotonic()
        work = requests * PER_REQUEST + data_frames * PER_DATA_FRAME
        self._tokens = min(
            self._burst, self._tokens + (now - self._last) * self._rate + (work - self._credited)
        )
        self._last = now
        self._credited = work
        if self._tokens < 0:
            raise ConnectionFailure(
                ENHANCE_YOUR_CALM, "too many frames that carry nothing, or too many streams reset"
            )


# Header blocks of responses use the static table and literals without indexing (RFC 7541, section 6.2.2), so
# that one encoding is valid on all connections.

_STATIC_NAMES: dict[bytes, int] = {}
_STATIC_FIELDS: dict[tuple[bytes, bytes], int] = {}
for _index, _field in enumerate(HeaderTable.STATIC_TABLE, 1):
    _STATIC_NAMES.setdefault(_field[0], _index)
    _STATIC_FIELDS.setdefault(_field, _index)


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encodes header fields, whose names must be in lower case."""
    return b"".join([_encode_field(name, value) for name, value in fields])


@lru_cache(maxsize=64)
def encode_status(status: int) -> bytes:
    return _encode_field(b":status", str(status).encode())


def _encode_field(name: bytes, value: bytes) -> bytes:
    exact = _STATIC_FIELDS.get((name, value)) if value else None
    if exact is not None:
        return bytes((0x80 | exact,))
    index = _STATIC_NAMES.get(name)
    head = _integer(index, 4, 0) if index is not None else b"\x00" + _integer(len(name), 7, 0) + name
    return head + _integer(len(value), 7, 0) + value


def _integer(value: int, prefix_bits: int, pattern: int) -> bytes:
    """Encodes an HPACK integer (RFC 7541, section 5.1)."""
    limit = (1 << prefix_bits) - 1
    if value < limit:
        return bytes((pattern | value,))
    out = bytearray((pattern | limit,))
    value -= limit
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def move(pending: deque[memoryview], size: int, parts: list[Buffer]) -> None:
    """Moves the first `size` bytes of `pending`, which has at least that many, to the end of `parts`."""
    while size:
        view = pending[0]
        if view.nbytes <= size:
            pending.popleft()
            parts.append(view)
            size -= view.nbytes
        else:
            parts.append(view[:size])
            pending[0] = view[size:]
            size = 0
