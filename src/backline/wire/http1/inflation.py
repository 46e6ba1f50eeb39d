"""Request bodies that came compressed: inflated before the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backline.wire.application import Buffer
from backline.wire.compression import ACCEPTED, CodingError
from backline.wire.inflation import inflate_small
from backline.wire.turns import peer_is_gone

if TYPE_CHECKING:
    from backline.wire.http1.pipeline import Pipeline
    from backline.wire.http1.request import Http1Request


def inflate(pipeline: Pipeline, request: Http1Request) -> None:
    """Gives the request to the application with its body inflated, or answers why it cannot be. Large bodies wait for their turn."""
    coding = request.headers[b"content-encoding"]
    if coding.strip().lower() == b"identity":
        pipeline.dispatch(request)
        return
    try:
        body = inflate_small(coding, request.body, pipeline.wire.limits.max_body_size)
        if body is not None and not _reserve(pipeline, request, len(body)):
            raise CodingError(503, "The server holds too many bytes of requests; try again")
    except CodingError as error:
        _refuse(pipeline, request, error)
        return
    if body is None:
        pipeline.run(_inflate_in_turn(pipeline, request, coding))
    else:
        _dispatch(pipeline, request, body)


async def _inflate_in_turn(pipeline: Pipeline, request: Http1Request, coding: bytes) -> None:
    """Cancelled when the connection is known to be lost; a client that left behind unread bytes is looked for here."""

    def wanted() -> bool:
        return request.unanswered and not peer_is_gone(pipeline.transport)

    try:
        body = await pipeline.wire.inflation.inflate(
            coding, request.body, lambda size: _reserve(pipeline, request, size), wanted
        )
    except CodingError as error:
        _refuse(pipeline, request, error)
        return
    if body is None:
        pipeline.transport.abort()
    else:
        _dispatch(pipeline, request, body)


def _reserve(pipeline: Pipeline, request: Http1Request, size: int) -> bool:
    """Counts the inflated body in place of the compressed one; False when the server has no room for it."""
    wire = pipeline.wire
    counted = wire.buffered_bytes - request.counted_bytes + size
    if counted > wire.limits.max_buffered_bytes:
        return False
    wire.buffered_bytes = counted
    request.counted_bytes = size
    return True


def _dispatch(pipeline: Pipeline, request: Http1Request, body: Buffer) -> None:
    request.body = body
    pipeline.dispatch(request)


def _refuse(pipeline: Pipeline, request: Http1Request, error: CodingError) -> None:
    kind, body = pipeline.wire.application.render_error(error.status, error.message)
    fields = [(b"content-type", kind)]
    if error.status == 415:
        fields.append((b"accept-encoding", ACCEPTED))
    request.respond(error.status, fields, (body,))
