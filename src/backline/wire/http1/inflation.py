"""Request bodies that came compressed: inflated before the application sees them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from backline.wire.compression import ACCEPTED, INLINE, CodingError, Inflater

if TYPE_CHECKING:
    from backline.wire.http1.pipeline import Pipeline
    from backline.wire.http1.request import Http1Request


def inflate(pipeline: Pipeline, request: Http1Request) -> None:
    """Gives the request to the application with its body inflated, or answers why it cannot be. Large bodies are inflated on a thread."""
    wire = pipeline.wire
    coding = request.headers[b"content-encoding"]
    if coding.strip().lower() == b"identity":
        pipeline.dispatch(request)
        return
    limit = min(wire.limits.max_body_size, wire.limits.max_buffered_bytes - wire.buffered_bytes)
    try:
        inflater = Inflater(coding, request.body, limit)
        done = len(request.body) <= INLINE and inflater.step()
    except CodingError as error:
        _refuse(pipeline, request, error)
        return
    if done:
        _dispatch(pipeline, request, inflater.output)
    else:
        pipeline.run(_inflate_on_thread(pipeline, request, inflater))


async def _inflate_on_thread(pipeline: Pipeline, request: Http1Request, inflater: Inflater) -> None:
    try:
        body = await pipeline.wire.loop.run_in_executor(None, inflater.finish)
    except CodingError as error:
        _refuse(pipeline, request, error)
    else:
        _dispatch(pipeline, request, body)


def _dispatch(pipeline: Pipeline, request: Http1Request, body: bytearray) -> None:
    request.body = body
    pipeline.wire.buffered_bytes += len(body) - request.counted_bytes
    request.counted_bytes = len(body)
    pipeline.dispatch(request)


def _refuse(pipeline: Pipeline, request: Http1Request, error: CodingError) -> None:
    kind, body = pipeline.wire.application.render_error(error.status, error.message)
    fields = [(b"content-type", kind)]
    if error.status == 415:
        fields.append((b"accept-encoding", ACCEPTED))
    request.respond(error.status, fields, (body,))
