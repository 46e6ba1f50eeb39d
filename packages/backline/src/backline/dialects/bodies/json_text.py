"""Decodes JSON as people write it, within limits on what decoding may cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from backline.dialects.json_data import without_words
from backline.dialects.json_scan import check_keys, count
from backline.dialects.off_loop import LARGE
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer

#: The maximum size of a JSON body in bytes. Once decoded, its numbers take up to ten times as much memory.
MAX_JSON: Final = 8 << 20
#: The maximum number of lists in a JSON body. A tensor with two dimensions has a list for each row.
MAX_LISTS: Final = 262_144
_FILE_NEEDS_TYPE = "a file needs a Content-Type other than JSON, such as application/octet-stream"
Result = TypeVar("Result")


def parsed(body: Buffer, decode: Callable[[Buffer], Result]) -> Result:
    """Returns the result of `decoded`. Raises InvalidArgument for a body that is not JSON."""
    try:
        return decoded(body, decode)
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        # `curl --data-binary @FILE` sends a file with the content type of a form, unless told otherwise.
        hint = "" if bytes(body[:16]).lstrip()[:1] in (b"{", b"[") else f"; {_FILE_NEEDS_TYPE}"
        raise InvalidArgument(f"failed to parse the request JSON: {error}{hint}") from None


def decoded(text: Buffer, decode: Callable[[Buffer], Result]) -> Result:
    """Decodes JSON, in which NaN and the infinities may lack quotes."""
    try:
        return decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        rewritten = without_words(text)
        if rewritten is None:
            raise
    return decode(rewritten)


def check_size(what: str, text: Buffer) -> None:
    if len(text) > MAX_JSON:
        raise _too_large(what, len(text), "bytes", MAX_JSON)


def check_json(what: str, text: Buffer) -> None:
    """Raises PayloadTooLarge if decoding a JSON text would hold the interpreter's lock for too long.

    `what` names the text in the error.
    """
    check_size(what, text)
    if len(text) > LARGE:
        check_keys(text)
        lists = count(text, ord("["))
        if lists > MAX_LISTS:
            raise _too_large(what, lists, "lists", MAX_LISTS)


def _too_large(what: str, size: int, of: str, limit: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"{what} has {size} {of}, more than the {limit} allowed here; send large tensors as .npy"
        " (Content-Type: application/x-npy), or as binary data to the route infer"
    )
