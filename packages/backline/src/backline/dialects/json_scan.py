"""Counts keys and elements of JSON without decoding it, to bound the cost of decoding.

Even on another thread, decoding holds the interpreter's lock until all of the JSON is decoded, and a key of
five bytes becomes Python objects of a hundred bytes. A client can send millions of keys or elements.
Therefore keys and elements are counted first, in steps between which the event loop can run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np

from backline.dialects.off_loop import stop_if_abandoned
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer

#: The maximum number of keys in all objects of a request; decoding this many takes about 10 ms.
MAX_KEYS = 16_384
#: The maximum size in bytes of a request without tensors or files, such as a change of settings or labels.
MAX_DOCUMENT = 64 * 1024
#: The number of bytes scanned without a pause.
STEP = 256 * 1024
_QUOTE, _COLON, _COMMA, _BACKSLASH = b'":,\\'
_OPENING, _CLOSING = list(b"{["), list(b"}]")
#: The maximum depth of nested objects and lists that the decoder itself accepts.
MAX_DEPTH = 1000
TOO_DEEP = "failed to parse the request JSON: it is nested too deeply"


def check_keys(text: Buffer) -> None:
    """Raises PayloadTooLarge for JSON with more than MAX_KEYS keys; the contents of strings do not count.

    Raises InvalidArgument instead if such JSON is also nested more than MAX_DEPTH levels deep before that.
    """
    # Most texts have few colons, and counting colons is twenty times faster than counting keys.
    if count(text, _COLON) <= MAX_KEYS:
        return
    exceeded = next((end for end, keys in keys_up_to(text) if keys > MAX_KEYS), None)
    if exceeded is not None:
        if depth(memoryview(text)[:exceeded]) > MAX_DEPTH:
            raise InvalidArgument(TOO_DEEP)
        raise PayloadTooLarge(
            f"the request JSON has more than {MAX_KEYS} keys. Send tensors as 'data' or in binary"
            " form, not as parameters"
        )


def check_document(body: Buffer) -> None:
    """Raises PayloadTooLarge for a body of more than MAX_DOCUMENT bytes. Smaller bodies are decoded on the
    event loop.
    """
    if len(body) > MAX_DOCUMENT:
        raise PayloadTooLarge(
            f"the body has {len(body)} bytes, more than the {MAX_DOCUMENT} allowed for this kind of request"
        )


def count(text: Buffer, byte: int) -> int:
    """Returns how many times a byte occurs in `text`."""
    array = np.frombuffer(text, np.uint8)
    return sum(
        int(np.count_nonzero(array[start : start + STEP] == byte)) for start in range(0, len(array), STEP)
    )


def contains(text: Buffer, words: Collection[bytes]) -> bool:
    """Returns whether any of the words occurs in `text`."""
    view = memoryview(text).cast("B")
    longest = max(map(len, words))
    pieces = (bytes(view[start : start + STEP + longest - 1]) for start in range(0, len(view), STEP))
    return any(word in piece for piece in pieces for word in words)


def keys_up_to(text: Buffer) -> Iterator[tuple[int, int]]:
    """Yields for each part of well-formed JSON where it ends, and the number of keys up to there in all
    objects.
    """
    end = keys = 0
    for part, _, inside in parts(text):
        end += len(part)
        keys += int(np.count_nonzero((part == _COLON) & ~inside))
        yield end, keys


def count_elements(text: Buffer) -> int:
    """Returns the number of leaf elements of a well-formed, possibly nested list without empty lists."""
    return 1 + sum(int(np.count_nonzero((part == _COMMA) & ~inside)) for part, _, inside in parts(text))


def depth(text: Buffer) -> int:
    """Returns how deep objects and lists are nested in JSON."""
    deepest = level = 0
    for part, _, inside in parts(text):
        opened = np.isin(part, _OPENING) & ~inside
        closed = np.isin(part, _CLOSING) & ~inside
        levels = level + np.cumsum(opened.astype(np.int64) - closed)
        deepest, level = max(deepest, int(levels.max())), int(levels[-1])
    return deepest


def parts(text: Buffer, step: int = STEP) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yields JSON in pieces of about `step` bytes, each with two masks over its bytes.

    The first mask marks the quotes that delimit strings. The second marks the bytes inside strings, including
    the opening quote but not the closing one.
    """
    view = memoryview(text).cast("B")
    start, parity = 0, 0
    while start < len(view):
        stop_if_abandoned()
        end = min(start + step, len(view))
        # Keep an escaped character in the same piece as its backslash.
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
