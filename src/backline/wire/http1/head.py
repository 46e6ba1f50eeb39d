"""The head of an HTTP/1.1 response: status lines with the date, formatted once a second."""

from __future__ import annotations

from http import HTTPStatus

from backline.wire.date import http_date

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_REASONS = {int(status): status.phrase.encode() for status in HTTPStatus} | {499: b"Client Closed Request"}
_heads: dict[int, bytes] = {}


def response_head(status: int) -> bytes:
    """The status line and the date field, of the current second (RFC 9110, 6.6.1)."""
    head = _heads.get(status)
    if head is None:
        head = _heads[status] = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (
            status,
            _REASONS.get(status, b""),
            http_date(),
        )
    return head


def refresh_date() -> None:
    """To be called about once a second."""
    _heads.clear()


def has_no_body(status: int) -> bool:
    """Whether a response never has a body (RFC 9112, 6.3)."""
    return status in {204, 304} or status < 200
