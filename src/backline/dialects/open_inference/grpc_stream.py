"""Inference over a gRPC stream: ModelStreamInfer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from backline.dialects.answers import hidden_error
from backline.dialects.open_inference.grpc_inference import GrpcInference, cancel
from backline.dialects.open_inference.grpc_request import ModelPlan
from backline.dialects.open_inference.parameters import FINAL
from backline.dialects.open_inference.wire_format import length_prefix
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError
from backline.engine.messages import InferRequest, InferResponse
from backline.protos import message
from backline.wire.application import RpcError, StreamCall

#: Requests of one stream that are in flight or whose answers wait for their turn; the client's next ones are not read before one has left.
MAX_IN_FLIGHT = 64
_INFER_RESPONSE = b"\x12"  # the tag of ModelStreamInferResponse.infer_response


class Turn:
    """A request's place in the order of answers. Its answers are there when `messages` is not None."""

    __slots__ = ("error", "messages", "plan", "request")

    def __init__(self) -> None:
        self.request: InferRequest | None = None
        self.plan: ModelPlan | None = None
        self.messages: list[bytes] | None = None
        #: The failure that `messages` tell, for clients that want the stream to end with it.
        self.error: BacklineError | None = None


class StreamInference:
    """The handler of ModelStreamInfer."""

    def __init__(self, engine: Engine, inference: GrpcInference) -> None:
        self._engine = engine
        self._inference = inference

    async def serve(self, call: StreamCall) -> None:
        """Answers in the order of requests, of which several are in flight at once.

        An error is an answer as well (`error_message`) and the stream goes on, unless the client sent the metadata
        `triton_grpc_error: true`: then the first error ends the stream as its status. Raises RpcError.
        """
        stream = _Stream(self._engine, self._inference, call)
        reading = asyncio.ensure_future(stream.read())
        try:
            await stream.write()
        finally:
            reading.cancel()
            stream.cancel()


class _Stream:
    """The state of one stream: a reader that submits requests, and a writer that sends their answers in order."""

    def __init__(self, engine: Engine, inference: GrpcInference, call: StreamCall) -> None:
        self._engine = engine
        self._inference = inference
        self._call = call
        self._turns: deque[Turn] = deque()
        self._ended = False
        self._failure: BaseException | None = None
        self._answered = asyncio.Event()
        self._room = asyncio.Event()
        self._strict = call.metadata.get(b"triton_grpc_error", b"").lower() == b"true"
        self._response = message("inference.ModelStreamInferResponse")
        # Every request has one answer, so each is marked as its last. Messages merge when their bytes are joined.
        self._final: bytes = message("inference.ModelInferResponse")(parameters={FINAL: {"bool_param": True}}).SerializeToString()

    async def read(self) -> None:
        """Submits the client's requests until the last one."""
        try:
            while (received := await self._call.receive()) is not None:
                self._take(received)
                while len(self._turns) >= MAX_IN_FLIGHT:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:  # to be raised where the call is answered
            self._failure = failure
        finally:
            self._ended = True
            self._answered.set()

    async def write(self) -> None:
        """Sends the answers, each when it is its turn."""
        turns = self._turns
        while True:
            while turns and turns[0].messages is not None:
                turn = turns.popleft()
                self._room.set()
                if turn.error is not None and self._strict:
                    raise RpcError(turn.error.grpc_code, turn.error.message)
                for answer in turn.messages or ():
                    await self._call.send(answer)
            if self._ended and not turns:
                if self._failure is not None:
                    raise self._failure
                return
            if self._failure is not None:
                raise self._failure
            self._answered.clear()
            await self._answered.wait()

    def cancel(self) -> None:
        """Marks all requests whose answers nobody will read."""
        for turn in self._turns:
            if turn.request is not None and turn.messages is None:
                cancel(turn.request)
        self._turns.clear()

    def _take(self, received: Any) -> None:
        turn = Turn()
        self._turns.append(turn)
        try:
            turn.request, turn.plan = self._inference.request(received, self._call.deadline, self._complete)
            turn.request.context = turn
            self._engine.submit(turn.request)
        except BacklineError as error:
            self._fail(turn, error)
        except Exception as error:
            self._fail(turn, hidden_error("a gRPC stream", error))

    def _complete(self, asked: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        turn = asked.context
        if not isinstance(turn, Turn) or turn.plan is None:
            return
        asked.context = None  # it holds the request: no cycle is left behind
        if response is None:
            self._fail(turn, error)  # type: ignore[arg-type]
            return
        try:
            answer = self._inference.write(turn.plan, response) + self._final
        except BacklineError as failure:
            self._fail(turn, failure)
            return
        except Exception as failure:
            self._fail(turn, hidden_error(f"the answer of model '{asked.model_name}'", failure))
            return
        turn.messages = [b"".join((_INFER_RESPONSE, length_prefix(len(answer)), answer))]
        self._answered.set()

    def _fail(self, turn: Turn, error: BacklineError) -> None:
        answer = self._response(error_message=error.message)
        if turn.request is not None:
            answer.infer_response.id = turn.request.id
            answer.infer_response.model_name = turn.request.model_name
            answer.infer_response.model_version = turn.request.model_version
            turn.request.context = None
        answer.infer_response.parameters[FINAL].bool_param = True
        turn.error = error
        turn.messages = [answer.SerializeToString()]
        self._answered.set()
