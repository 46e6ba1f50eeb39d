"""Recognises the frames of a complete response with one message. Most servers write these frames together."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from backline.plugins.fleet.rpc_call import ResponseHead
from backline.wire.grpc.messages import PREFIX_SIZE
from backline.wire.http2 import frames
from backline.wire.http2.frames import FRAME_HEADER
from backline.wire.limits import KIB

#: The maximum size in bytes of the responses that are recognised.
_LARGEST: Final = 64 * KIB


class WholeAnswer:
    """The sizes of the three frames of a response: HEADERS, DATA with one message, and HEADERS that end the
    stream.

    Frames of known sizes are decoded in one step. Decoding them one by one takes several times as long.
    """

    __slots__ = ("_constant", "_unpack", "length")

    def __init__(self, head: int, length: int, trailers: int) -> None:
        message = length - PREFIX_SIZE
        layout = Struct(f">IBI{head}sIBIBI{message}sIBI{trailers}s")
        self._unpack = layout.unpack
        #: The values that are the same in all such responses: for each frame, the word with its length and
        #: type, and its flags; for the message, its compression flag and its size.
        self._constant = (
            head << 8 | frames.HEADERS,
            frames.END_HEADERS,
            length << 8 | frames.DATA,
            0,
            0,
            message,
            trailers << 8 | frames.HEADERS,
            frames.END_HEADERS | frames.END_STREAM,
        )
        #: The size, in bytes, of the payload of the DATA frame.
        self.length = length

    def message(self, data: bytes, known: Callable[[bytes], ResponseHead | None]) -> tuple[int, bytes] | None:
        """Returns the stream number and the message of the response in `data`, if `data` is a successful
        response. Returns None if `data` may be anything else. `data` must have the size of the three frames
        together.

        `known` returns the contents of a header block that the connection has decoded before, otherwise None.
        """
        (
            word1, flags1, number1, block1,
            word2, flags2, number2, compressed, size, message,
            word3, flags3, number3, block3,
        ) = self._unpack(data)  # fmt: skip
        if (
            (word1, flags1, word2, flags2, compressed, size, word3, flags3) != self._constant
            or not number1 == number2 == number3
            or (head := known(block1)) is None
            or (trailers := known(block3)) is None
            or head.status != 200
            or head.code is not None
            or trailers.code != 0
        ):
            return None
        return number1, message


def sizes_in(data: bytes) -> WholeAnswer | None:
    """Returns the sizes of the frames in `data`. Returns None if `data` has more than _LARGEST bytes, or is
    not exactly three frames, of which the second is large enough for a message.
    """
    lengths: list[int] = []
    at = 0
    while at + FRAME_HEADER.size <= len(data) <= _LARGEST and len(lengths) < 3:
        length = FRAME_HEADER.unpack_from(data, at)[0] >> 8
        lengths.append(length)
        at += FRAME_HEADER.size + length
    if len(lengths) != 3 or at != len(data) or lengths[1] < PREFIX_SIZE:
        return None
    return WholeAnswer(*lengths)
