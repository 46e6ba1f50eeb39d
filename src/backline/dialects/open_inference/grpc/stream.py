"""Inference over a gRPC stream: ModelStreamInfer."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import monotonic_ns
from typing import Any

from backline.dialects.answers import hidden_error
from backline.dialects.exchange import cancel, hidden_answer, trace_arrival, trace_refusal
from backline.dialects.off_loop import LargeRequest
from backline.dialects.open_inference.grpc.inference import GrpcInference
from backline.dialects.open_inference.grpc.messages import ModelPlan
from backline.dialects.open_inference.grpc.wire_format import length_prefix
from backline.dialects.open_inference.parameters import FINAL
from backline.engine.engine import Engine
from backline.engine.errors import BacklineError, NotFound
from backline.engine.messages import InferRequest, InferResponse, ResponseFlow
from backline.engine.ticket import Ticket
from backline.memo import Memo
from backline.protos import message
from backline.wire.application import RpcError, StreamCall

#: Requests of one stream that are in flight, and answers that wait to be sent; the client's next requests are not read before one has left.
MAX_IN_FLIGHT = 64
#: Bytes of those requests and answers, and of the answers that are to be expected; one request alone may have more.
MAX_BYTES = 32 * 1024 * 1024
#: Answers that wait to be sent, and their bytes, above which decoupled models are to wait; they go on at half as much.
MAX_WAITING = 64
MAX_WAITING_BYTES = 1024 * 1024
_MAX_REMEMBERED = 1024
_INFER_RESPONSE = b"\x12"  # the tag of ModelStreamInferResponse.infer_response


class Asked:
    """A request of a stream. One to a model with one response holds a turn in the order of answers, and has its answer when it is over."""

    __slots__ = ("answer", "error", "flow", "ordered", "over", "plan", "request", "size", "ticket")

    def __init__(self, size: int) -> None:
        #: The bytes of its message.
        self.size = size
        self.request: InferRequest | None = None
        self.ticket: Ticket | None = None
        self.plan: ModelPlan | None = None
        #: Of a decoupled model.
        self.flow: ResponseFlow | None = None
        self.ordered = True
        self.answer = b""
        #: The failure that the answer tells, for clients that want the stream to end with it.
        self.error: BacklineError | None = None
        self.over = False


class StreamInference:
    """The handler of ModelStreamInfer."""

    def __init__(self, engine: Engine, inference: GrpcInference) -> None:
        self._engine = engine
        self._inference = inference
        #: Bytes of the last answer by model: what is to be expected of the next.
        self._answer_sizes: Memo[str, int] = Memo(_MAX_REMEMBERED)

    async def serve(self, call: StreamCall) -> None:
        """Answers the requests of a stream, of which several are in flight at once: those to models with one response in their order, those
        to decoupled models as responses come.

        An error is an answer as well (`error_message`) and the stream goes on, unless the client sent the metadata
        `triton_grpc_error: true`: then the first error ends the stream as its status. Raises RpcError.
        """
        stream = _Stream(self._engine, self._inference, call, self._answer_sizes)
        reading = asyncio.ensure_future(stream.read())
        try:
            await stream.write()
        finally:
            reading.cancel()
            stream.cancel()


class _Stream:
    """The state of one stream: a reader that submits requests, and a writer that sends their answers."""

    def __init__(
        self, engine: Engine, inference: GrpcInference, call: StreamCall, answer_sizes: Memo[str, int]
    ) -> None:
        self._engine = engine
        self._inference = inference
        self._call = call
        self._budget = StreamBudget(answer_sizes)
        #: Those that hold a turn, and those of decoupled models.
        self._turns: deque[Asked] = deque()
        self._decoupled: set[Asked] = set()
        #: What is to be sent, and the error that it tells.
        self._ready: deque[tuple[bytes, BacklineError | None]] = deque()
        self._ended = False
        self._failure: BaseException | None = None
        self._answered = asyncio.Event()
        self._room = asyncio.Event()
        self._strict = call.metadata.get(b"triton_grpc_error", b"").lower() == b"true"
        self._response = message("inference.ModelStreamInferResponse")
        # Every answer tells whether it is the last one to its request. Messages merge when their bytes are joined.
        part = message("inference.ModelInferResponse")
        self._last: bytes = part(parameters={FINAL: {"bool_param": True}}).SerializeToString()
        self._not_last: bytes = part(parameters={FINAL: {"bool_param": False}}).SerializeToString()

    # reading and writing

    async def read(self) -> None:
        """Submits the client's requests until the last one."""
        try:
            while (received := await self._call.receive()) is not None:
                await self._take(received)
                while not self._budget.has_room:
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
        """Sends the answers."""
        ready, budget = self._ready, self._budget
        while True:
            while ready:
                answer, error = ready.popleft()
                if error is not None and self._strict:
                    raise RpcError(error.grpc_code, error.public_message)
                await self._call.send(answer)
                budget.sent(len(answer))
                self._room.set()
                if budget.wants_responses:
                    self._resume()
            if self._failure is not None:
                raise self._failure
            if self._ended and not self._turns and not self._decoupled:
                return
            self._answered.clear()
            await self._answered.wait()

    def cancel(self) -> None:
        """Cancels all requests whose answers nobody will read."""
        for asked in (*self._turns, *self._decoupled):
            if asked.ticket is not None and not asked.over:
                cancel(asked.ticket)
            if asked.flow is not None:
                asked.flow.resume()
        self._turns.clear()
        self._decoupled.clear()

    # requests

    async def _take(self, received: Any) -> None:
        asked = Asked(len(received))
        metadata = self._call.metadata
        began = 0 if self._engine.tracer is None else monotonic_ns()
        try:
            try:
                plan, id, inputs = self._inference.read(received, metadata, "", "", True)
            except LargeRequest:
                plan, id, inputs = await self._inference.off_loop.submit(
                    partial(self._inference.read, received, metadata, "", "", False)
                )
            request = plan.request("", "", id, inputs, self._call.deadline)
            asked.request, asked.plan = request, plan
            trace = trace_arrival(self._engine, "GRPC", request.model_name, metadata, began)
            if self._is_decoupled(plan):
                self._begin_decoupled(asked)
                asked.ticket = Ticket(request, self._complete, self._respond, asked.flow, asked, trace)
            else:
                self._begin_ordered(asked)
                asked.ticket = Ticket(request, self._complete, context=asked, trace=trace)
            self._engine.submit(asked.ticket)
        except BacklineError as error:
            if asked.request is None:
                trace_refusal(self._engine, "GRPC", "", metadata, began, error)
            self._refuse(asked, error)
        except Exception as error:
            self._refuse(asked, hidden_error("a gRPC stream", error))

    def _is_decoupled(self, plan: ModelPlan) -> bool:
        try:
            return self._engine.find(plan.model_name, plan.model_version).decoupled
        except NotFound:  # said again when the request is submitted
            return False

    def _begin_decoupled(self, asked: Asked) -> None:
        asked.ordered = False
        asked.flow = ResponseFlow()
        self._decoupled.add(asked)
        self._budget.begun(asked.size, None)
        if self._budget.is_full:
            asked.flow.pause()

    def _begin_ordered(self, asked: Asked) -> None:
        self._turns.append(asked)
        self._budget.begun(asked.size, None if asked.plan is None else asked.plan.model_name)

    def _refuse(self, asked: Asked, error: BacklineError) -> None:
        if asked.request is None:  # it could not even be read
            self._begin_ordered(asked)
        self._over(asked, self._error_answer(asked, error), error)

    # answers

    def _respond(self, ticket: Ticket, response: InferResponse) -> None:
        """A response of a decoupled model, after which more may come."""
        asked = ticket.context
        if not isinstance(asked, Asked) or asked.plan is None:
            return
        try:
            self._send(self._infer_answer(asked.plan, response, self._not_last), None)
        except BacklineError as failure:
            self._send(self._error_answer(asked, failure, last=False), failure)
        except Exception as failure:
            hidden = hidden_answer(ticket.request.model_name, failure)
            self._send(self._error_answer(asked, hidden, last=False), hidden)

    def _complete(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        asked = ticket.context
        if not isinstance(asked, Asked) or asked.plan is None:
            return
        ticket.context = None  # it holds the ticket: leave no reference cycle
        answer = b""
        if error is None:
            try:
                if response is not None:
                    answer = self._infer_answer(asked.plan, response, self._last)
                elif asked.plan.empty_final:
                    answer = self._empty_answer(ticket.request)
            except BacklineError as failure:
                error = failure
            except Exception as failure:
                error = hidden_answer(ticket.request.model_name, failure)
        if error is not None:
            answer = self._error_answer(asked, error)
        self._over(asked, answer, error)

    def _over(self, asked: Asked, answer: bytes, error: BacklineError | None) -> None:
        """A request is done. `answer` is its only one, or the last one of a decoupled model; empty when there is none."""
        asked.over = True
        if asked.ticket is not None:
            asked.ticket.context = None
        name = asked.plan.model_name if asked.ordered and asked.plan is not None else None
        self._budget.ended(asked.size, name, None if error is not None else len(answer))
        if not asked.ordered:
            self._decoupled.discard(asked)
            self._send(answer, error)
            return
        asked.answer, asked.error = answer, error
        self._budget.waits(len(answer))
        turns = self._turns
        while turns and turns[0].over:
            first = turns.popleft()
            self._ready.append((first.answer, first.error))
        self._answered.set()

    def _send(self, answer: bytes, error: BacklineError | None) -> None:
        if answer:
            self._ready.append((answer, error))
            self._budget.waits(len(answer))
            if self._budget.is_full:
                for asked in self._decoupled:
                    if asked.flow is not None:
                        asked.flow.pause()
        else:
            self._room.set()
        self._answered.set()

    def _resume(self) -> None:
        for asked in tuple(self._decoupled):
            if asked.flow is not None and asked.flow.paused:
                asked.flow.resume()

    # messages

    def _infer_answer(self, plan: ModelPlan, response: InferResponse, mark: bytes) -> bytes:
        answer = self._inference.write(plan, response)
        return b"".join((_INFER_RESPONSE, length_prefix(len(answer) + len(mark)), answer, mark))

    def _empty_answer(self, request: InferRequest) -> bytes:
        answer = self._response()
        answer.infer_response.id = request.id
        answer.infer_response.model_name = request.model_name
        answer.infer_response.model_version = request.model_version
        answer.infer_response.parameters[FINAL].bool_param = True
        return answer.SerializeToString()  # type: ignore[no-any-return]

    def _error_answer(self, asked: Asked, error: BacklineError, *, last: bool = True) -> bytes:
        answer = self._response(error_message=error.public_message)
        if asked.request is not None:
            answer.infer_response.id = asked.request.id
            answer.infer_response.model_name = asked.request.model_name
            answer.infer_response.model_version = asked.request.model_version
        answer.infer_response.parameters[FINAL].bool_param = last
        return answer.SerializeToString()  # type: ignore[no-any-return]


class StreamBudget:
    """Counts what one stream has in flight. `answer_sizes` has the bytes of the last answer of each model, and is kept up."""

    def __init__(self, answer_sizes: Memo[str, int]) -> None:
        self._answer_sizes = answer_sizes
        self._requests = 0
        self._request_bytes = 0
        #: By model: requests whose answer comes all at once.
        self._expected: dict[str, int] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def begun(self, size: int, model: str | None) -> None:
        """A request of `size` bytes is in flight; `model` is the one whose only answer is to come, None where answers can be held back."""
        self._requests += 1
        self._request_bytes += size
        if model is not None:
            self._expected[model] = self._expected.get(model, 0) + 1

    def ended(self, size: int, model: str | None, answer: int | None) -> None:
        """That request is done, with an answer of so many bytes; None for a failure."""
        self._requests -= 1
        self._request_bytes -= size
        if model is None:
            return
        if self._expected.get(model, 0) > 1:
            self._expected[model] -= 1
        else:
            self._expected.pop(model, None)
        if answer is not None:
            self._answer_sizes.keep(model, answer)

    def waits(self, size: int) -> None:
        """An answer waits to be sent."""
        self._waiting += 1
        self._waiting_bytes += size

    def sent(self, size: int) -> None:
        """An answer was sent."""
        self._waiting -= 1
        self._waiting_bytes -= size

    @property
    def has_room(self) -> bool:
        """Whether one more request may be read."""
        in_flight = self._requests + self._waiting
        if not in_flight:
            return True
        expected = sum(
            (self._answer_sizes.get(model) or 0) * count for model, count in self._expected.items()
        )
        return in_flight < MAX_IN_FLIGHT and self._request_bytes + self._waiting_bytes + expected < MAX_BYTES

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be sent that decoupled models should make no more."""
        return self._waiting >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def wants_responses(self) -> bool:
        """Whether so little waits to be sent that they may go on."""
        return self._waiting <= MAX_WAITING // 2 and self._waiting_bytes <= MAX_WAITING_BYTES // 2
