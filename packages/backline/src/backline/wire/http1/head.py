"""Heads of HTTP/1.1 messages: checks of request heads that the parser does not make, and the heads of
responses.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from backline.wire.application import BROWSER_FIELDS, Buffer, Fields
from backline.wire.connection import Wire, http_date
from backline.wire.limits import Limits

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_heads: dict[int, bytes] = {}


def response_head(status: int) -> bytes:
    """Returns the status line and the date field (RFC 9110, section 6.6.1). They are cached until
    `refresh_date` is called.
    """
    head = _heads.get(status)
    if head is None:
        head = _heads[status] = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (
            status,
            _reason(status),
            http_date(),
        )
    return head


def _reason(status: int) -> bytes:
    """Returns the reason phrase of a status; none if the status is not known."""
    from http import HTTPStatus  # imported here, because its 62 members take long to define

    if status == 499:
        return b"Client Closed Request"
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


#: The maximum number of response heads that are cached at a time. There must be a limit because a head
#: contains the size of the response, which clients can vary.
_MAX_HEADS = 1024
_whole_heads: dict[tuple[Fields, int], bytes] = {}


def whole_head(fields: Fields, size: int) -> bytes:
    """Returns the head of a 200 response with these fields and `size` bytes, on a connection that stays open.

    The head is cached until `refresh_date` is called; `fields` must be hashable.
    """
    head = _whole_heads.get((fields, size))
    if head is None:
        if len(_whole_heads) >= _MAX_HEADS:
            _whole_heads.clear()
        lines = b"".join(b"%b: %b\r\n" % field for field in fields)
        head = b"%b%bcontent-length: %d\r\n\r\n" % (response_head(200), lines, size)
        _whole_heads[fields, size] = head
    return head


def refresh_date() -> None:
    """Clears the cached heads, whose date field is stale. Call it about once a second."""
    _heads.clear()
    _whole_heads.clear()


def has_no_body(status: int) -> bool:
    """Returns whether responses with this status have no body (RFC 9112, section 6.3)."""
    return status in {204, 304} or status < 200


class Refusal(Struct, frozen=True):
    """The response to a request that does not reach the application.

    `close` ends the connection after the response. `head_only` leaves out the body, which a client that sent
    HEAD would take for the start of the next response (RFC 9112, section 6.3).
    """

    status: int
    message: str
    close: bool = True
    fields: Fields = ()
    head_only: bool = False

    def render(self, wire: Wire, *, close: bool) -> bytes:
        kind, body = wire.application.render_error(self.status, self.message)
        lines = [response_head(self.status), b"content-type: %b\r\n" % kind]
        lines += (b"%b: %b\r\n" % field for field in self.fields)
        if close:
            lines.append(b"connection: close\r\n")
        lines.append(b"content-length: %d\r\n\r\n" % len(body))
        if not self.head_only:
            lines.append(body)
        return b"".join(lines)


#: Requests with any of these fields need further checks. Http1Connection does not remember the heads of such
#: requests, because a request that repeats a remembered head skips all checks of the head.
SPECIAL_FIELDS = BROWSER_FIELDS | {
    b"connection",
    b"proxy-connection",
    b"upgrade",
    b"expect",
    b"transfer-encoding",
}
#: Header fields that ask for a switch to another protocol.
_UPGRADE_FIELDS = frozenset((b"upgrade", b"connection", b"proxy-connection", b"http2-settings"))


def check_size(limits: Limits, size: int, fields: int) -> Refusal | None:
    """Returns the refusal for a head of `size` bytes with this number of fields, or None if the head is
    within the limits.
    """
    if size > limits.max_header_size:
        return Refusal(431, f"The request's header exceeds the maximum of {limits.max_header_size} bytes")
    if fields > limits.max_header_fields:
        return Refusal(431, f"The request has more than {limits.max_header_fields} header fields")
    return None


def find_path(method: bytes, target: bytes) -> bytes | Refusal:
    """Returns the path and query within a request target (RFC 9112, section 3.2), or a refusal if the target
    is invalid.
    """
    if b"#" in target:
        return Refusal(400, "The request's target must not have a fragment ('#')")
    if method == b"CONNECT":
        return Refusal(400, "CONNECT is refused: this server is not a proxy")
    if target[:7].lower() == b"http://" or target[:8].lower() == b"https://":
        # Servers must accept the absolute form, which clients send to proxies (section 3.2.2).
        slash = target.find(b"/", 8)
        return target[slash:] if slash > 0 else b"/"
    if target.startswith(b"/") or (target == b"*" and method == b"OPTIONS"):
        return target
    return Refusal(400, "The request's target must be a path that begins with '/'")


def is_websocket(method: bytes, version: str, headers: Mapping[bytes, bytes]) -> bool:
    """Returns whether a head asks for a WebSocket (RFC 6455, section 4.2.1) and announces no body."""
    return (
        headers.get(b"upgrade", b"").strip().lower() == b"websocket"
        and (method, version) == (b"GET", "1.1")
        and b"transfer-encoding" not in headers
        and headers.get(b"content-length", b"0") == b"0"
    )


def check_special(version: str, headers: Mapping[bytes, bytes], upgrade: bool) -> Refusal | None:
    """Returns the refusal for a head whose version, Host or special fields are invalid, or None if they are
    valid.

    `upgrade` is true if the head asks for another protocol, other than a WebSocket on a path that accepts
    WebSockets.
    """
    if version not in ("1.1", "1.0"):
        return Refusal(400, f"HTTP version {version} is not supported on this connection; use 1.1")
    if version == "1.1" and b"host" not in headers:
        return Refusal(400, "The request must have a Host field")
    if upgrade:
        protocols = headers.get(b"upgrade", b"")
        names = {name.strip() for name in protocols.lower().split(b",")}
        if version == "1.0" or not names <= {b"h2c", b"h2", b""}:
            shown = protocols.decode("latin-1")[:64]
            return Refusal(400, f"Upgrade to '{shown}' is refused; leave the Upgrade field out")
    coding = headers.get(b"transfer-encoding")
    if coding is not None and (version == "1.0" or coding.strip().lower() != b"chunked"):
        return Refusal(400, "Transfer-Encoding must be 'chunked', and requires HTTP/1.1")
    expect = headers.get(b"expect")
    if expect is not None and version == "1.1" and expect.lower() != b"100-continue":
        return Refusal(417, f"Expect: {expect.decode('latin-1')[:64]} is not supported; only 100-continue is")
    return None


def head_without_upgrade(method: bytes, target: bytes, headers: Mapping[bytes, bytes]) -> bytes:
    """Returns a request's head without the fields that ask for another protocol. Servers may ignore these
    fields (RFC 9110, section 7.8).
    """
    fields = [field for field in headers.items() if field[0] not in _UPGRADE_FIELDS]
    if b"close" in headers.get(b"connection", b"").lower():
        fields.append((b"connection", b"close"))
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, b"".join(b"%b: %b\r\n" % field for field in fields))


def speaks_http(data: Buffer) -> bool:
    """Returns whether the third word of the first line starts with "HTTP/", as in a request line."""
    words = bytes(data[:8192]).split(b"\n", 1)[0].split()
    return len(words) >= 3 and words[2].startswith(b"HTTP/")
