"""Inference over WebSocket: GET /models/{model}/stream runs a model on each message of a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from msgspec import Struct

from backline.access.scope import Scope
from backline.dialects.admission import admit_message
from backline.dialects.answers import error_body, hidden_error, respond_error
from backline.dialects.bodies.media import BINARY, OUTPUT, Form, choose_output, write_binary
from backline.dialects.bodies.plan import BodyPlan
from backline.dialects.bodies.reader import PARAMETERS, parameters_of
from backline.dialects.bodies.requests import BodyReader
from backline.dialects.bodies.writer import shaped, write_json
from backline.dialects.documents import read_query
from backline.dialects.event_stream import encoded
from backline.dialects.off_loop import LARGE, OffLoop, turn_of
from backline.dialects.router import Router
from backline.engine.engine import Engine
from backline.engine.parameters import read_parameters
from backline.wire.application import HttpRequest, WebSocket
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, InferResponse, Parameter, SequenceStep
from backline_client.values.tensor import Tensor

#: The subprotocol that the server selects if the client offers it. A web page offers this subprotocol along
#: with the one that carries its key.
PROTOCOL = b"backline"
#: RFC 6455, section 7.4.1: the server encountered an unexpected condition.
_INTERNAL_ERROR = 1011


@decodable
class StreamQuery(Struct, forbid_unknown_fields=True):
    """The query parameters of a WebSocket connection. The output named `output` is sent in binary messages;
    if the name is empty, all outputs are sent as JSON. With `sequence`, the requests of the connection form a
    sequence.
    """

    output: str = ""
    sequence: bool = False


class UpgradeRequired(BacklineError):
    http_status = 426
    grpc_code = 12


class SocketService:
    """Registers the WebSocket routes, and runs a Conversation for each connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._off_loop = OffLoop()
        self._reader = BodyReader(engine)
        #: Strong references to the tasks, because the event loop keeps only weak references.
        self._tasks: set[asyncio.Task[None]] = set()

    def add_routes(self, router: Router) -> None:
        router.add(Scope.INFER, "GET", "/models/{}/stream", self._open, "")
        router.add(Scope.INFER, "GET", "/models/{}/versions/{}/stream", self._open)

    def _open(self, model: str, version: str, request: HttpRequest) -> None:
        self._engine.find_ready(model, version)  # an unknown model is refused before the handshake
        query = read_query(StreamQuery, request.query)
        offered = request.headers.get(b"sec-websocket-protocol", b"").split(b",")
        chosen = PROTOCOL if PROTOCOL in (one.strip() for one in offered) else b""
        turn = turn_of(request)
        try:
            socket = request.accept_websocket(chosen)
        except ConnectionRefusedError:
            raise Unavailable(
                "the server has too many open streams; try again later", retry_after=1
            ) from None
        if socket is None:
            error = UpgradeRequired(
                "this path accepts only WebSocket (RFC 6455, version 13) over HTTP/1.1; send single requests"
                f" to POST /models/{model[:64]}"
            )
            respond_error(request, error, [(b"upgrade", b"websocket")])
            return
        conversation = Conversation(
            self._engine,
            self._reader,
            self._off_loop,
            socket,
            request.identity,
            turn,
            (model, version),
            query,
            request.headers,
        )
        task = asyncio.get_running_loop().create_task(conversation.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        request.on_abandon = partial(_cancel, task)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


class Conversation:
    """Answers the messages of one connection, one at a time.

    The next message is received only after all responses to the previous one have been sent, and sending
    waits while the client does not read. So neither side can make the other buffer without limit.
    """

    def __init__(
        self,
        engine: Engine,
        reader: BodyReader,
        off_loop: OffLoop,
        socket: WebSocket,
        identity: Any,
        turn: str,
        target: tuple[str, str],
        query: StreamQuery,
        fields: Mapping[bytes, bytes],
    ) -> None:
        """`fields` are the header fields of the handshake."""
        self._engine = engine
        self._fields = fields
        self._reader = reader
        self._off_loop = off_loop
        self._socket = socket
        self._identity = identity
        self._turn = turn
        self._model, self._version = target
        self._query = query
        #: Parameters for the next request, from a message that contains nothing else.
        self._parameters: dict[str, Parameter] = {}
        self._sequence = ""

    async def run(self) -> None:
        try:
            while (message := await self._socket.receive()) is not None:
                await self._answer(message)
            self._socket.close()
        except ConnectionResetError:
            pass  # the client has disconnected
        except Exception as error:
            hidden_error(f"a stream to model '{self._model}'", error)
            self._socket.close(_INTERNAL_ERROR, "the server failed on this message; see its log")

    async def _answer(self, message: str | bytes) -> None:
        count = 0
        try:
            if self._keep_parameters(message):
                return
            plan, request = await self._read(message)
            admit = None if self._identity is None else self._identity.follow
            async with self._engine.stream(request, admit=admit, fields=self._fields) as responses:
                async for response in responses:
                    await self._send(plan, response)
                    count += 1
        except BacklineError as error:
            await self._socket.send(error_body(error.public_message).decode())
        else:
            await self._socket.send(f'{{"done":{count}}}')

    def _keep_parameters(self, message: str | bytes) -> bool:
        """Keeps the parameters of a message that contains nothing else. Returns whether the message was of
        this kind.

        Raises InvalidArgument if a parameter is invalid.
        """
        if isinstance(message, bytes) or len(message) > LARGE or PARAMETERS not in message:
            return False
        with suppress(msgspec.DecodeError, RecursionError):
            found = msgspec.json.decode(message)
            if isinstance(found, dict) and found.keys() == {PARAMETERS}:
                parameters = parameters_of(found[PARAMETERS])
                read_parameters(parameters)  # raises for an invalid parameter
                self._parameters = parameters
                return True
        return False

    async def _read(self, message: str | bytes) -> tuple[BodyPlan, InferRequest]:
        """Reads the request in a message: inputs by name as JSON, or the bytes of the model's only input."""
        model, version = self._model, self._version
        admit_message(self._identity, Scope.INFER, model, len(message))
        if self._engine.is_unknown(model, version):
            await self._engine.wake(model, version)
        text = isinstance(message, str)
        body = message.encode() if isinstance(message, str) else message
        headers: Mapping[bytes, bytes] = {b"content-type": b"application/json" if text else BINARY.encode()}
        parameters, self._parameters = self._parameters, {}
        read = partial(self._reader.read, body, headers, model, version, False, parameters)
        if text and len(body) > LARGE:
            plan, _, inputs = await self._off_loop.submit(read, len(body), self._turn)
        else:
            plan, _, inputs = read()
        return plan, self._request(plan, inputs)

    def _request(self, plan: BodyPlan, inputs: dict[str, Tensor]) -> InferRequest:
        request = plan.request(self._model, self._version, "", inputs, None)
        given = request.sequence
        if not self._query.sequence:
            if given is not None and not given.id and given.end:
                raise InvalidArgument(
                    "sequence_end needs a sequence: send its sequence_id, or connect with ?sequence=true"
                )
            return request
        if given is not None and (given.id or given.start):
            raise InvalidArgument(
                "the requests of this connection are a sequence of their own: leave out sequence_id and"
                " sequence_start, or connect without ?sequence=true"
            )
        last = given is not None and given.end
        step = SequenceStep(self._sequence or uuid4().hex, not self._sequence, last)
        self._sequence = "" if last else str(step.id)
        return msgspec.structs.replace(request, sequence=step)

    async def _send(self, plan: BodyPlan, response: InferResponse) -> None:
        if self._query.output:
            form = Form(BINARY, {OUTPUT: self._query.output})
            await self._socket.send(write_binary(choose_output(shaped(plan, response), form), form))
        else:
            document = await encoded(self._off_loop, self._turn, partial(write_json, plan), response)
            await self._socket.send('{"outputs":' + document.decode() + "}")
