"""Responses as server-sent events: when they are sent, and in which order."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backline.dialects.event_stream import EventStreams
from backline.dialects.off_loop import OffLoop
from backline.embedded.function import FunctionRequest
from backline.engine.responses import Responses
from backline.wire.application import Buffer, Fields, HttpRequest, ResponseStream
from backline_client.values.errors import Internal
from backline_client.values.messages import InferRequest, InferResponse


class RecordedStream(ResponseStream):
    """Records what is sent. While `full`, the client does not read, and `send` waits for `read`."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.full = False
        self.read = asyncio.Event()
        self.closed = asyncio.Event()

    async def send(self, chunk: Buffer) -> None:
        self.sent.append(bytes(chunk))
        if self.full:
            await self.read.wait()

    def send_now(self, chunk: Buffer) -> bool:
        if not self.full:
            self.sent.append(bytes(chunk))
        return not self.full

    def close(self) -> None:
        self.closed.set()


class RecordedRequest(HttpRequest):
    """A request whose response is a RecordedStream."""

    def __init__(self) -> None:
        self.recorded = RecordedStream()
        self.status = 0
        self.identity = None
        self.on_abandon = None

    def respond(
        self, status: int, fields: Fields, body: Sequence[Buffer] = (), *, compressible: bool = False
    ) -> None:
        raise AssertionError("the response is a stream")

    def stream(self, status: int, fields: Fields) -> ResponseStream:
        self.status = status
        return self.recorded


def encode(response: InferResponse) -> bytes:
    """Encodes a response as its id."""
    if response.id == "bad":
        raise Internal("not encoded")
    return response.id.encode()


async def begin() -> tuple[RecordedRequest, Responses]:
    """Returns a request and its responses, for which the sender waits."""
    request, responses = RecordedRequest(), Responses(InferRequest("m", {}))
    EventStreams(OffLoop()).answer(request, "m", responses, encode)
    await asyncio.sleep(0)
    return request, responses


def respond(responses: Responses, id: str) -> None:
    responses.ticket.respond(InferResponse("m", "1", id, []))


def test_a_response_is_sent_in_the_turn_in_which_it_arrives() -> None:
    async def scenario() -> None:
        request, responses = await begin()
        respond(responses, "a")
        respond(responses, "b")
        assert (request.status, request.recorded.sent) == (200, [b"data: a\n\n", b"data: b\n\n"])
        responses.ticket.complete(None, None)
        await request.recorded.closed.wait()

    asyncio.run(scenario())


def test_responses_keep_their_order_when_the_client_stops_reading() -> None:
    async def scenario() -> None:
        request, responses = await begin()
        recorded = request.recorded
        respond(responses, "a")
        recorded.full = True
        respond(responses, "b")
        respond(responses, "c")
        await asyncio.sleep(0)
        recorded.full = False
        respond(responses, "d")
        recorded.read.set()
        responses.ticket.complete(None, None)
        await recorded.closed.wait()
        assert recorded.sent == [b"data: %b\n\n" % id for id in (b"a", b"b", b"c", b"d")]

    asyncio.run(scenario())


def test_a_response_that_cannot_be_encoded_ends_the_stream_with_its_error() -> None:
    async def scenario() -> None:
        request, responses = await begin()
        respond(responses, "a")
        respond(responses, "bad")
        await request.recorded.closed.wait()
        first, error = request.recorded.sent
        assert (first, b"not encoded" in error) == (b"data: a\n\n", True)
        assert responses.ticket.cancelled

    asyncio.run(scenario())


def test_a_response_that_a_function_collects_is_encoded_once() -> None:
    encoded: list[str] = []

    def encode_once(response: InferResponse) -> bytes:
        encoded.append(response.id)
        return encode(response)

    async def scenario() -> None:
        request = FunctionRequest(b"POST", b"/", b"", {}, b"")
        responses = Responses(InferRequest("m", {}))
        EventStreams(OffLoop()).answer(request, "m", responses, encode_once)
        await asyncio.sleep(0)
        respond(responses, "a")
        respond(responses, "b")
        responses.ticket.complete(None, None)
        response = await asyncio.wrap_future(request.response)
        assert (response.status, response.body) == (200, b"data: a\n\ndata: b\n\n")

    asyncio.run(scenario())
    assert encoded == ["a", "b"]
