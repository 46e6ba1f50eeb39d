"""Streams responses as server-sent events, one per response
(https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from backline.dialects.answers import error_body, hidden_error, respond_error, retry_fields
from backline.dialects.off_loop import PIECE, OffLoop
from backline.engine.errors import BacklineError
from backline.engine.responses import Responses
from backline.engine.values.messages import InferResponse
from backline.wire.application import HttpRequest, ResponseStream

EVENT_STREAM: tuple[bytes, bytes] = (b"content-type", b"text/event-stream; charset=utf-8")
#: Encodes a response as JSON. Raises BacklineError.
Encode = Callable[[InferResponse], bytes]


def event(data: bytes) -> bytes:
    """Returns an event with one line of data, which is enough for compact JSON, as it has no line breaks."""
    return b"data: %b\n\n" % data


class EventStreams:
    """Streams a model's responses to HTTP clients as they arrive."""

    def __init__(self, off_loop: OffLoop) -> None:
        self._off_loop = off_loop
        #: Strong references to the tasks: the event loop keeps only weak ones.
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, request: HttpRequest, model: str, responses: Responses, encode: Encode) -> None:
        """Sends an event for each response. An error after the first response is sent as the last event.

        If the client disconnects, the request is cancelled; while the client does not read, the model waits.
        """
        self.run(request, model, responses, _send(request, model, responses, encode, self._off_loop))

    def run(
        self, request: HttpRequest, model: str, responses: Responses, answering: Coroutine[Any, Any, None]
    ) -> None:
        """Runs `answering`, which responds to `request` from `responses`; a disconnect closes `responses`."""
        request.on_abandon = responses.close
        task = asyncio.get_running_loop().create_task(_guarded(request, model, responses, answering))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _guarded(
    request: HttpRequest, model: str, responses: Responses, answering: Coroutine[Any, Any, None]
) -> None:
    try:
        await answering
    except ConnectionResetError:
        pass  # the client has disconnected
    except Exception as error:
        respond_error(request, hidden_error(f"the response of model '{model}'", error))
    finally:
        responses.close()
        request.on_abandon = None  # breaks a reference cycle


async def encoded(off_loop: OffLoop, encode: Encode, response: InferResponse) -> bytes:
    """Encodes a response, off the event loop if it is large. Raises BacklineError."""
    if any(tensor.data.size > PIECE for tensor in response.outputs):
        return await off_loop.submit(partial(encode, response))
    return encode(response)


async def _send(
    request: HttpRequest, model: str, responses: Responses, encode: Encode, off_loop: OffLoop
) -> None:
    stream: ResponseStream | None = None
    error: BacklineError | None = None
    while error is None:
        try:
            response = await anext(responses, None)
            if response is None:
                break
            data = await encoded(off_loop, encode, response)
        except BacklineError as failure:
            error, data = failure, error_body(failure.public_message)
        except Exception as failure:
            error = hidden_error(f"the response of model '{model}'", failure)
            data = error_body(error.public_message)
        if stream is None:
            stream = _begin(request, error)
        await stream.send(event(data))
    (stream or _begin(request, None)).close()


def _begin(request: HttpRequest, error: BacklineError | None) -> ResponseStream:
    if error is None:
        return request.stream(200, [EVENT_STREAM])
    return request.stream(error.http_status, [EVENT_STREAM, *retry_fields(error)])
