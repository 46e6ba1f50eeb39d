"""A request's header fields, validated according to RFC 9113, section 8."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from backline.wire.application import Application, Denial, StreamMethod, UnaryMethod
from backline.wire.grpc.timeout import InvalidTimeout, parse_timeout
from backline.wire.http2 import frames
from backline.wire.http2.frames import StreamFailure
from backline.wire.limits import Limits

if TYPE_CHECKING:
    from backline.wire.http2.connection import Http2Connection
    from backline.wire.http2.stream import Stream

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
#: A valid value: no control characters except tab, and no whitespace at either end (RFC 9113, section 8.2.1;
#: RFC 9110, section 5.5).
_VALUE = re.compile(rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?").fullmatch
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+").fullmatch
_PATH = re.compile(rb"/[\x21-\x22\x24-\x7e\x80-\xff]*").fullmatch
_BLANKS = (b" ", b"\t")
#: The maximum total size of the values of a repeated field, in bytes.
_MAX_JOINED = 2048
_DIGITS = re.compile(rb"[0-9]{1,19}").fullmatch
_PSEUDO = frozenset((b":method", b":scheme", b":path", b":authority"))
_CONNECTION_SPECIFIC = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)


class RequestHead:
    """The decoded fields of a request. Immutable, since all requests with the same header block share it."""

    __slots__ = (
        "accept_encoding",
        "apart",
        "coding",
        "content_length",
        "encoding",
        "exchange",
        "headers",
        "is_grpc",
        "method",
        "path",
        "prompt",
        "query",
        "refusal",
        "rpc",
        "timeout",
        "timeout_error",
        "too_large",
        "vital",
    )

    def __init__(
        self, pseudo: dict[bytes, bytes], headers: dict[bytes, bytes], application: Application
    ) -> None:
        self.method = pseudo[b":method"]
        target = pseudo.get(b":path", b"")
        self.path, _, self.query = target.partition(b"?")
        self.headers = headers
        self.content_length = _content_length(headers)
        #: The Content-Encoding of the body, or empty for identity.
        self.coding = headers.get(b"content-encoding", b"").strip().lower()
        if self.coding == b"identity":
            self.coding = b""
        kind = headers.get(b"content-type", b"").lower()
        self.is_grpc = kind.startswith(b"application/grpc") and kind[16:17] in (b"", b"+", b";", b" ")
        self.rpc: UnaryMethod | StreamMethod | None = application.rpc.get(target)
        self.vital = application.is_vital(self.method, self.path)
        self.encoding = headers.get(b"grpc-encoding", b"identity").lower() if self.is_grpc else b"identity"
        self.accept_encoding = frozenset(
            name.strip().lower() for name in headers.get(b"grpc-accept-encoding", b"").split(b",")
        )
        #: The Stream subclass that handles the request, and whether its `begin` runs before the body arrives.
        #: `HeaderBlocks` sets both, and `apart`.
        self.exchange: Callable[[Http2Connection, int, RequestHead], Stream]
        self.prompt = True
        #: Whether the request counts as a stream or as a vital request, and not as a request in flight.
        self.apart = False
        #: The error text if the header list is too large, otherwise None.
        self.too_large: str | None = None
        #: The gate's refusal of the request, or None if the gate admits it.
        self.refusal: Denial | None = None
        self.timeout: float | None = None
        self.timeout_error: str | None = None
        if self.is_grpc and b"grpc-timeout" in headers:
            try:
                self.timeout = parse_timeout(headers[b"grpc-timeout"])
            except InvalidTimeout as error:
                self.timeout_error = str(error)


def parse_head(
    fields: Iterable[tuple[bytes, bytes]], application: Application, limits: Limits
) -> RequestHead:
    """Builds a request's head. Raises StreamFailure if the fields are malformed (RFC 9113, section 8.1.1).

    If the header list is too large, the head contains only the first fields and gives the reason in
    `too_large`, so that the request gets a response (section 10.5.1).

    Security: a single byte that refers to HPACK's dynamic table can decode to a field of 4 KiB. Such fields
    share the table's memory, but joining the values of a repeated field allocates new memory. A client that
    leaves its response unread could make the server hold 4 KiB for every byte that the client sends. So
    joined values are limited in size. Cookies, which RFC 9113 allows clients to repeat and which this server
    does not use, are dropped.
    """
    pseudo: dict[bytes, bytes] = {}
    headers: dict[bytes, bytes] = {}
    count = size = 0
    too_large = None
    for name, value in fields:
        count += 1
        # The size of a header list: RFC 9113, section 6.5.2.
        size += len(name) + len(value) + 32
        if count > limits.max_header_fields:
            too_large = f"The request has more than {limits.max_header_fields} header fields"
            break
        if size > limits.max_header_size:
            too_large = f"The header fields of the request are larger than {limits.max_header_size} bytes"
            break
        if name[:1] == b":":
            if headers:
                raise _malformed("a pseudo-header field after a regular one")
            if name not in _PSEUDO or name in pseudo:
                raise _malformed("an unknown or repeated pseudo-header field")
            pseudo[name] = value
            continue
        # In RFC 9113, whitespace around a value is malformed, but some clients send metadata that ends with a
        # space, and gRPC's own servers accept such metadata. Stripping the whitespace is safe, because the
        # field is not forwarded to another server.
        if value[-1:] in _BLANKS or value[:1] in _BLANKS:
            value = value.strip(b" \t")
        _check_field(name, value)
        if name == b"cookie":
            continue
        known = headers.get(name)
        if known is not None:
            value = known + b", " + value
            if len(value) > _MAX_JOINED:
                too_large = f"The values of a repeated header field exceed {_MAX_JOINED} bytes in total"
                break
        headers[name] = value
    _check_pseudo(pseudo, headers)
    head = RequestHead(pseudo, headers, application)
    head.too_large = too_large
    return head


def check_trailers(fields: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises StreamFailure if trailers are malformed. Their content is not used."""
    for name, value in fields:
        if name[:1] == b":":
            raise _malformed("a pseudo-header field in the trailers")
        _check_field(name, value)


def _check_field(name: bytes, value: bytes) -> None:
    if _NAME(name) is None:
        raise _malformed("a field name that is not a lower-case token")
    if _VALUE(value) is None:
        raise _malformed("a field value with control characters, or whitespace around it")
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value.lower() != b"trailers"):
        raise _malformed("a field that is specific to a connection")


def _check_pseudo(pseudo: dict[bytes, bytes], headers: dict[bytes, bytes]) -> None:
    if (
        any(_VALUE(value) is None for value in pseudo.values())
        or _METHOD(pseudo.get(b":method", b"")) is None
    ):
        raise _malformed("a pseudo-header field is missing or invalid")
    authority = pseudo.get(b":authority")
    if pseudo[b":method"] == b"CONNECT":
        if b":path" in pseudo or b":scheme" in pseudo or not authority:
            raise _malformed("CONNECT takes only :authority")
    else:
        path = pseudo.get(b":path", b"")
        if not pseudo.get(b":scheme") or not (
            _PATH(path) or (path == b"*" and pseudo[b":method"] == b"OPTIONS")
        ):
            raise _malformed("a pseudo-header field is missing or invalid")
    # Security: the gate checks Host, so :authority must not name another host (RFC 9113, section 8.3.1).
    if authority is not None and headers.setdefault(b"host", authority) != authority:
        raise _malformed(":authority and host differ")


def _content_length(headers: dict[bytes, bytes]) -> int | None:
    value = headers.get(b"content-length")
    if value is None:
        return None
    # The field may be repeated if all values are equal (RFC 9110, section 8.6).
    values = {part.strip() for part in value.split(b",")}
    if len(values) != 1 or _DIGITS(only := values.pop()) is None:
        raise _malformed("content-length is not a number")
    return int(only)


def _malformed(reason: str) -> StreamFailure:
    return StreamFailure(frames.PROTOCOL_ERROR, reason)
