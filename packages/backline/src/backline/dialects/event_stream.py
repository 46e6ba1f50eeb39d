"""Streams responses as server-sent events, one per response
(https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from backline.dialects.answers import error_body, hidden_error, respond_error, retry_fields
from backline.dialects.off_loop import OffLoop, byte_count, is_long, turn_of
from backline.engine.responses import Responses
from backline.wire.application import HttpRequest, ResponseStream
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse

EVENT_STREAM: tuple[bytes, bytes] = (b"content-type", b"text/event-stream; charset=utf-8")
#: Encodes a response as JSON. Raises BacklineError if the response cannot be sent as JSON.
Encode = Callable[[InferResponse], bytes]


def event(data: bytes) -> bytes:
    """Returns an event with `data`, which must be a single line, such as compact JSON."""
    return b"data: %b\n\n" % data


class EventStreams:
    """Streams a model's responses to HTTP clients as they arrive."""

    def __init__(self, off_loop: OffLoop) -> None:
        self._off_loop = off_loop
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    def answer(self, request: HttpRequest, model: str, responses: Responses, encode: Encode) -> None:
        """Sends an event for each response. An error is sent as the last event; if it is also the first
        event, it determines the HTTP status.

        If the client disconnects, the request is cancelled. While the client does not read, the model is
        paused.
        """
        sender = _EventSender(request, model, encode, self._off_loop)
        responses.offer = sender.send_now
        self.run(request, model, responses, sender.send_all(responses))

    def run(
        self, request: HttpRequest, model: str, responses: Responses, answering: Coroutine[Any, Any, None]
    ) -> None:
        """Runs `answering`, which sends `responses` to the client. A disconnect closes `responses`."""
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


async def encoded(off_loop: OffLoop, turn: str, encode: Encode, response: InferResponse) -> bytes:
    """Encodes a response; a large response is encoded off the event loop, in its turn (see `turn_of`). Raises
    what `encode` raises.
    """
    if _is_large(response):
        return await off_loop.submit(partial(encode, response), byte_count(response.outputs), turn)
    return encode(response)


def _is_large(response: InferResponse) -> bool:
    return any(map(is_long, response.outputs))


class _EventSender:
    """Sends the responses to one request as events."""

    def __init__(self, request: HttpRequest, model: str, encode: Encode, off_loop: OffLoop) -> None:
        self._request = request
        self._model = model
        self._encode = encode
        self._off_loop = off_loop
        self._turn = turn_of(request)  # the address is unknown once the stream has begun
        self._stream: ResponseStream | None = None

    def send_now(self, response: InferResponse) -> bool:
        """Sends a response in the same iteration of the event loop in which the response arrives.

        Returns False for a response that `send_all` must send, because it is large, cannot be encoded, or has
        to wait for the client.
        """
        if _is_large(response):
            return False
        try:
            data = self._encode(response)
        except Exception:  # `send_all` gets the same error, and reports it
            return False
        return self._begun(None).send_now(event(data))

    async def send_all(self, responses: Responses) -> None:
        """Sends the responses for which `send_now` returned False, and ends the stream.

        Raises ConnectionResetError if the client closes the connection first.
        """
        error: BacklineError | None = None
        while error is None:
            try:
                response = await anext(responses, None)
                if response is None:
                    break
                data = await encoded(self._off_loop, self._turn, self._encode, response)
            except BacklineError as failure:
                error, data = failure, error_body(failure.public_message)
            except Exception as failure:
                error = hidden_error(f"the response of model '{self._model}'", failure)
                data = error_body(error.public_message)
            await self._begun(error).send(event(data))
        self._begun(None).close()

    def _begun(self, error: BacklineError | None) -> ResponseStream:
        """Returns the stream. At the first event, begins the stream, with the status of `error` if there is
        one.
        """
        if self._stream is None:
            if error is None:
                self._stream = self._request.stream(200, [EVENT_STREAM])
            else:
                fields = [EVENT_STREAM, *retry_fields(error)]
                self._stream = self._request.stream(error.http_status, fields)
        return self._stream
