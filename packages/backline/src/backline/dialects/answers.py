"""Sends the responses that all dialects share: JSON over HTTP, messages over gRPC, and errors in both."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from math import ceil
from time import monotonic
from typing import Any, TypeAlias

import msgspec

from backline.access.gate import CHALLENGE
from backline.access.quota import Meter
from backline.access.scope import Scope
from backline.dialects.documents import read_message
from backline.wire.application import Buffer, Fields, HttpRequest, RpcError, UnaryCall, UnaryMethod
from backline_client.protos import message
from backline_client.values.errors import BacklineError, Internal, Unavailable

JSON = b"application/json"
_JSON_FIELDS: Fields = [(b"content-type", JSON)]
encode_json = msgspec.json.Encoder().encode
#: Returns the HTTP status of an error, and the JSON that describes it.
ErrorForm: TypeAlias = Callable[[BacklineError], tuple[int, bytes]]
_log = logging.getLogger(__name__)


def respond_json(request: HttpRequest, document: Any, status: int = 200) -> None:
    respond_encoded(request, encode_json(document), status)


def respond_encoded(request: HttpRequest, document: bytes, status: int = 200) -> None:
    """Responds with JSON that is already encoded."""
    request.respond(status, _JSON_FIELDS, [document])


def respond_error(request: HttpRequest, error: BacklineError, fields: Fields = ()) -> None:
    """Responds with the error's status and {"error": message}, or in the form that the route has. Adds
    `fields` to the header, and the fields about retries, credentials and quotas that apply.
    """
    form: ErrorForm | None = request.error_form
    status, body = (error.http_status, error_body(error.public_message)) if form is None else form(error)
    answer = [*_JSON_FIELDS, *fields, *retry_fields(error), *(CHALLENGE if status == 401 else ())]
    if request.identity is not None and request.identity.meter is not None:
        answer += quota_fields(request.identity.meter)
    request.respond(status, answer, [body])


def retry_fields(error: BacklineError) -> Fields:
    """Returns the Retry-After field if a retry makes sense, otherwise no fields."""
    return () if error.retry_after is None else [(b"retry-after", b"%d" % max(1, ceil(error.retry_after)))]


def quota_fields(meter: Meter) -> Fields:
    """Returns the fields that tell a caller how many requests its rate limit leaves
    (draft-ietf-httpapi-ratelimit-headers-10).

    Returns no fields if the caller's rate is not limited, or if more than half of the burst is left.
    """
    standing = meter.standing(monotonic())
    if standing is None:
        return ()
    burst, window, left, reset = standing
    return (
        (b"ratelimit-policy", b'"requests";q=%d;w=%d' % (burst, window)),
        (b"ratelimit", b'"requests";r=%d;t=%d' % (left, reset)),
    )


def error_body(message: str) -> bytes:
    return encode_json({"error": message.encode(errors="replace").decode()})


def render_error(_: int, message: str) -> tuple[bytes, bytes]:
    """Returns the content type and body of the response for an error that the wire has detected."""
    return JSON, error_body(message)


def hidden_error(what: str, cause: BaseException) -> BacklineError:
    """Logs an unexpected exception with its traceback; returns the error that the client sees instead.

    `what` names the failed work in the log. A MemoryError is logged without a traceback, because the line
    that raised it is not at fault, and the error tells the client to try again later.
    """
    if isinstance(cause, MemoryError):
        _log.error("out of memory in %s", what)
        return Unavailable("the server is out of memory for this request; try again later", retry_after=1)
    _log.error("unexpected exception in %s", what, exc_info=cause)
    return Internal("internal error: the server failed to handle this request, see its log")


#: The handler of a unary gRPC method.
UnaryHandler = Callable[[UnaryCall, Buffer], None]


def fail_call(call: UnaryCall, error: BacklineError) -> None:
    """Ends a call with an error. If a retry makes sense, a trailer says how long the client should wait."""
    trailers: Fields = ()
    if error.retry_after is not None:
        trailers = ((b"grpc-retry-pushback-ms", b"%d" % max(1, ceil(error.retry_after * 1000))),)
    call.fail(error.grpc_code, error.public_message, trailers)


def guarded(handler: UnaryHandler) -> UnaryHandler:
    """Wraps a handler so that an error raised by the handler ends the call."""

    @wraps(handler)
    def answer(call: UnaryCall, received: Buffer) -> None:
        try:
            handler(call, received)
        except RpcError as error:
            call.fail(error.code, error.message)
        except BacklineError as error:
            fail_call(call, error)
        except Exception as error:
            hidden = hidden_error("a gRPC call", error)
            call.fail(hidden.grpc_code, hidden.message)

    return answer


def unary_method(
    method: Any,
    scope: Scope,
    answer: Callable[[Any], Any],
    when: Callable[[Any, UnaryCall, Callable[[], None]], None] | None = None,
) -> UnaryMethod:
    """Returns the method with the protobuf descriptor `method`. `answer` maps a request to the response's
    fields; None stands for a response without fields.

    `when(asked, call, reply)` calls `reply` as soon as `answer` may be called. Without `when`, `answer` is
    called immediately.
    """
    response_type = message(method.output_type.full_name)

    def handle(call: UnaryCall, received: Buffer) -> None:
        asked = read_message(method.input_type.full_name, received)

        def reply() -> None:
            call.reply(response_type(**(answer(asked) or {})).SerializeToString())

        if when is None:
            reply()
        else:
            when(asked, call, reply)

    return UnaryMethod(guarded(handle), scope)
