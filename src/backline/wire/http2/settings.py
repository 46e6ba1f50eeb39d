"""The settings of a connection, ours and the peer's (RFC 9113, section 6.5)."""

from __future__ import annotations

from struct import Struct

from backline.wire.http2 import frames
from backline.wire.http2.frames import ConnectionFailure
from backline.wire.limits import KIB, MIB, Limits

#: Announced once a large body comes, so that it needs few frames. Not before: a HEADERS frame would have to be taken in that size, too.
LARGE_MAX_FRAME_SIZE = 1 * MIB
LARGE_BODY = 64 * KIB
#: What a stream may send before its message's length is known; then it is granted the length.
OUR_STREAM_WINDOW = 1 * MIB
#: What a connection may send beyond what was taken from it.
OUR_CONNECTION_WINDOW = 16 * MIB
#: A SETTINGS frame has six settings; nobody needs this many.
MAX_SETTINGS_FRAME = 4 * KIB

_SETTINGS = Struct(">HI")


def ours(limits: Limits) -> bytes:
    """The first frames of a server: its SETTINGS, and the window of the connection."""
    announced = frames.settings(
        {
            frames.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
            frames.INITIAL_WINDOW_SIZE: OUR_STREAM_WINDOW,
            frames.MAX_HEADER_LIST_SIZE: limits.max_header_size,
        }
    )
    return announced + frames.window_update(0, OUR_CONNECTION_WINDOW - frames.DEFAULT_WINDOW)


def parse(payload: bytes) -> list[tuple[int, int]]:
    """The settings of a frame in their order, unknown ones left out. Raises ConnectionFailure for values out of bounds."""
    if len(payload) % 6:
        raise ConnectionFailure(frames.FRAME_SIZE_ERROR, "the length of SETTINGS is not a multiple of 6")
    known = []
    for key, value in _SETTINGS.iter_unpack(payload):
        if key == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        if key == frames.INITIAL_WINDOW_SIZE and value > frames.MAX_WINDOW:
            raise ConnectionFailure(frames.FLOW_CONTROL_ERROR, "INITIAL_WINDOW_SIZE is above 2^31-1")
        if key == frames.MAX_FRAME_SIZE and not frames.MIN_MAX_FRAME_SIZE <= value < 1 << 24:
            raise ConnectionFailure(frames.PROTOCOL_ERROR, "MAX_FRAME_SIZE is not between 2^14 and 2^24-1")
        known.append((key, value))
    return known
