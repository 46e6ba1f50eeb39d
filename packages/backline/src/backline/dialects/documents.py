"""Reads small requests: JSON and URL queries, where unknown keys are errors, and protobuf messages."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec

from backline.dialects.json_scan import MAX_DOCUMENT, check_document
from backline_client.protos import message
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.spelling import nearest
from backline_client.values.tensor import Buffer

Document = TypeVar("Document", bound=msgspec.Struct)
_QUERY = "failed to read the query of the URL"
_UNKNOWN = r"(?s)Object contains unknown field `(.*)`"


@cache
def _decoder_of(kind: type[Document]) -> msgspec.json.Decoder[Document]:
    return msgspec.json.Decoder(kind)


def read_document(kind: type[Document], body: Buffer, *, bounded: bool = True) -> Document:
    """Reads the JSON object in a body; an empty body counts as an empty object.

    Raises InvalidArgument if the body is not a JSON object, or does not fit `kind`. If `bounded`, also raises
    PayloadTooLarge for more than MAX_DOCUMENT bytes, because the document is decoded on the event loop.
    """
    if bounded:
        check_document(body)
    try:
        document: Document = _decoder_of(kind).decode(body or b"{}")
        return document
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        buffer = "" if isinstance(error, msgspec.ValidationError) else " buffer"  # as in Triton
        raise InvalidArgument(
            f"failed to parse the request JSON{buffer}: {_explain(kind, str(error))}"
        ) from None
    except RecursionError:
        raise InvalidArgument("failed to parse the request JSON: it is nested too deeply") from None


def read_query(kind: type[Document], query: bytes) -> Document:
    """Reads the query parameters of a URL.

    Raises InvalidArgument if the query is malformed or does not fit `kind`, or gives a parameter twice.
    """
    try:
        return msgspec.convert(read_pairs(query), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{_QUERY}: {_explain(kind, str(error))}") from None


def read_pairs(query: bytes) -> dict[str, str]:
    """Returns the query parameters of a URL. Raises InvalidArgument if the query is malformed, or gives a
    parameter twice.
    """
    try:
        pairs = parse_qsl(
            query.decode(),
            keep_blank_values=True,
            strict_parsing=bool(query),
            errors="strict",
            max_num_fields=16,
        )
    except ValueError as error:  # UnicodeDecodeError derives from it
        raise InvalidArgument(f"{_QUERY}: {error}") from None
    given = dict(pairs)
    if len(given) != len(pairs):
        raise InvalidArgument(f"{_QUERY}: a parameter was given twice")
    return given


def read_message(
    name: str, received: Buffer, limit: int = MAX_DOCUMENT, kinds: Callable[[str], Any] = message
) -> Any:
    """Reads a protobuf message, given its full name, such as "inference.ModelReadyRequest". `kinds` returns
    the class of a message.

    Raises InvalidArgument if the message is malformed, and PayloadTooLarge if the message has more than
    `limit` bytes, because messages are decoded on the event loop.
    """
    if len(received) > limit:
        raise PayloadTooLarge(
            f"the message has {len(received)} bytes, more than the {limit} allowed for this kind of request"
        )
    from google.protobuf.message import DecodeError

    try:
        return kinds(name).FromString(received)
    except DecodeError:
        article = "an" if name[0] in "aeiou" else "a"
        raise InvalidArgument(f"the message is not {article} {name}: it is malformed or cut short") from None


def suggestion(name: str, known: tuple[str, ...]) -> str:
    """Returns a hint for the error about an unknown name: the closest known name, or else all known names."""
    if near := nearest(name, known, 1):
        return f"Did you mean '{near[0]}'?"
    return f"Expected {' or '.join(repr(one) for one in known) or 'nothing'}."


def _explain(kind: type[msgspec.Struct], text: str) -> str:
    unknown = re.search(_UNKNOWN, text)
    if unknown is None:
        return text
    name = unknown[1]
    return f"unknown key '{name[:64]}'. {suggestion(name, kind.__struct_encode_fields__)}"
