"""JSON looked at as bytes: how much a text would become is known before any of it becomes an object.

Decoding a text holds the interpreter until it is done, on whichever thread, and a key of five bytes becomes objects of
a hundred. So what a client may send in millions is counted here first, in steps that let the event loop have the
interpreter in between.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from backline.engine.errors import PayloadTooLarge
from backline.engine.tensor import Buffer

#: Keys of all objects of one request; decoding this many takes about 10 ms.
MAX_KEYS = 16_384
#: Bytes of a request that describes no tensors and no files, such as settings and labels.
MAX_DOCUMENT = 64 * 1024
#: Bytes that are looked at without a pause.
STEP = 256 * 1024
_QUOTE, _COLON, _COMMA, _BACKSLASH = b'":,\\'


def check_keys(text: Buffer) -> None:
    """Raises PayloadTooLarge for a text with more than MAX_KEYS keys; strings do not count, whatever is in them."""
    # Most texts have few colons at all, and these are counted twenty times as fast as keys.
    if count(text, _COLON) > MAX_KEYS and count_keys(text) > MAX_KEYS:
        raise PayloadTooLarge(
            f"the request JSON has more than {MAX_KEYS} keys. Send tensors as 'data' or in binary form, not as parameters"
        )


def check_document(body: Buffer) -> None:
    """Raises PayloadTooLarge for a body above MAX_DOCUMENT: what is below is decoded on the event loop."""
    if len(body) > MAX_DOCUMENT:
        raise PayloadTooLarge(
            f"the body has {len(body)} bytes, more than the {MAX_DOCUMENT} that a request of this kind may have"
        )


def count(text: Buffer, byte: int) -> int:
    """How often a byte occurs."""
    array = np.frombuffer(text, np.uint8)
    return sum(
        int(np.count_nonzero(array[start : start + STEP] == byte)) for start in range(0, len(array), STEP)
    )


def count_keys(text: Buffer) -> int:
    """The keys of all objects of a well-formed text."""
    return sum(int(np.count_nonzero((part == _COLON) & ~inside)) for part, _, inside in parts(text))


def count_elements(text: Buffer) -> int:
    """The elements of a well-formed list, those of lists in it counted instead of these; none of them may be empty."""
    return 1 + sum(int(np.count_nonzero((part == _COMMA) & ~inside)) for part, _, inside in parts(text))


def parts(text: Buffer, step: int = STEP) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cuts a text into pieces of about `step` bytes: the bytes, and for each whether it is the quote at an end of a string, and whether it
    is in a string, the opening quote included and the closing one not.
    """
    view = memoryview(text).cast("B")
    start, parity = 0, 0
    while start < len(view):
        end = min(start + step, len(view))
        # The character that a backslash escapes belongs to the same piece.
        while end < len(view) and view[end - 1] == _BACKSLASH:
            end += 1
        piece = bytes(view[start:end])
        plain = piece
        if b"\\" in piece:
            plain = piece.replace(b"\\\\", b"__").replace(b'\\"', b"__")
        quotes = np.frombuffer(plain, np.uint8) == _QUOTE
        inside = ((np.cumsum(quotes, dtype=np.uint8) + parity) & 1).astype(np.bool_)
        parity = int(inside[-1])
        yield np.frombuffer(piece, np.uint8), quotes, inside
        start = end
