"""Answers to HTTP requests that are JSON, and the shape of errors: {"error": message}."""

from __future__ import annotations

import logging
from math import ceil
from typing import Any

import msgspec

from backline.engine.errors import BacklineError, Internal, Unavailable
from backline.wire.application import Fields, HttpRequest

JSON = b"application/json"
_JSON_FIELDS: Fields = [(b"content-type", JSON)]
encode_json = msgspec.json.Encoder().encode
_log = logging.getLogger(__name__)


def respond_json(request: HttpRequest, document: Any, status: int = 200) -> None:
    respond_encoded(request, encode_json(document), status)


def respond_encoded(request: HttpRequest, document: bytes, status: int = 200) -> None:
    """Answers with JSON that is written already."""
    request.respond(status, _JSON_FIELDS, [document])


def respond_error(request: HttpRequest, error: BacklineError, fields: Fields = ()) -> None:
    """Answers with the error's status and message, and with Retry-After where trying again makes sense."""
    answer = [*_JSON_FIELDS, *fields]
    if error.retry_after is not None:
        answer.append((b"retry-after", b"%d" % max(1, ceil(error.retry_after))))
    request.respond(error.http_status, answer, [error_body(error.public_message)])


def error_body(message: str) -> bytes:
    return encode_json({"error": message.encode(errors="replace").decode()})


def render_error(_: int, message: str) -> tuple[bytes, bytes]:
    """Content type and body of an error that was found before any route was."""
    return JSON, error_body(message)


def hidden_error(what: str, cause: BaseException) -> BacklineError:
    """The error to show in place of an unexpected exception, which goes to the log with its traceback.

    Memory that is used up is no fault of the code, and no traceback says by whom: it is worth a line, and another try.
    """
    if isinstance(cause, MemoryError):
        _log.error("memory is used up in %s", what)
        return Unavailable("the server has no memory left for this request; try again later", retry_after=1)
    _log.error("unexpected exception in %s", what, exc_info=cause)
    return Internal("internal error: the server failed to handle this request, see its log")
