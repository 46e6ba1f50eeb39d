"""Inference over a gRPC stream: ModelStreamInfer."""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from backline.access.scope import Scope
from backline.dialects.admission import admit_message
from backline.dialects.answers import hidden_error
from backline.dialects.exchange import cancel, hidden_answer, trace_arrival, trace_refusal
from backline.dialects.off_loop import LargeRequest, turn_of
from backline.dialects.open_inference.grpc.messages import ModelPlan
from backline.dialects.open_inference.grpc.wire_format import length_prefix
from backline.dialects.open_inference.planning import FINAL
from backline.engine.engine import Engine
from backline.engine.route import keep_route
from backline.engine.ticket import Ticket
from backline.wire.application import RpcError, StreamCall
from backline_client.protos import message
from backline_client.values.errors import BacklineError
from backline_client.values.memo import Memo
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow

if TYPE_CHECKING:
    from backline.dialects.open_inference.grpc.service import GrpcInference

#: The maximum number of requests in flight and unsent responses of one stream. At the maximum, the client's
#: next request is not read.
MAX_IN_FLIGHT = 64
#: The maximum total size in bytes of a stream's requests in flight, unsent responses and expected responses.
#: A single request may exceed this size.
MAX_BYTES = 32 * 1024 * 1024
#: The number of unsent responses of a stream, and their total size in bytes, at which decoupled models pause.
#: The models resume when both values have fallen to half.
MAX_WAITING = 64
MAX_WAITING_BYTES = 1024 * 1024
_MAX_REMEMBERED = 1024
_INFER_RESPONSE = b"\x12"  # the tag of ModelStreamInferResponse.infer_response


class Asked:
    """A request on a stream. Unless the model is decoupled, responses are sent in the order of the
    requests.
    """

    __slots__ = ("answer", "error", "flow", "ordered", "over", "plan", "request", "size", "ticket")

    def __init__(self, size: int) -> None:
        #: The length of the request message in bytes.
        self.size = size
        self.request: InferRequest | None = None
        self.ticket: Ticket | None = None
        self.plan: ModelPlan | None = None
        #: Pauses a decoupled model; None for other models.
        self.flow: ResponseFlow | None = None
        self.ordered = True
        self.answer = b""
        #: The error that `answer` reports; some clients request that an error ends the stream (see `serve`).
        self.error: BacklineError | None = None
        self.over = False


class StreamInference:
    """The handler of ModelStreamInfer."""

    def __init__(self, engine: Engine, inference: GrpcInference) -> None:
        self._engine = engine
        self._inference = inference
        #: The size of each model's last response, as an estimate for the next response.
        self._answer_sizes: Memo[str, int] = Memo(_MAX_REMEMBERED)

    async def serve(self, call: StreamCall) -> None:
        """Serves a stream, which may have several requests in flight.

        Responses keep the order of requests, except those of decoupled models. An error is sent as a response
        (`error_message`), and the stream continues. If the client has sent the metadata `triton_grpc_error:
        true`, the first error instead ends the stream: it is raised as RpcError, with its gRPC status.
        """
        stream = _Stream(self._engine, self._inference, call, self._answer_sizes)
        reading = asyncio.ensure_future(stream.read())
        try:
            await stream.write()
        finally:
            reading.cancel()
            stream.cancel()


class _Stream:
    """The state of one stream: a reader that submits requests, and a writer that sends responses."""

    def __init__(
        self, engine: Engine, inference: GrpcInference, call: StreamCall, answer_sizes: Memo[str, int]
    ) -> None:
        self._engine = engine
        self._inference = inference
        self._call = call
        self._budget = StreamBudget(answer_sizes)
        #: The requests in flight whose responses are sent in the order of the requests, and the requests in
        #: flight to decoupled models.
        self._turns: deque[Asked] = deque()
        self._decoupled: set[Asked] = set()
        #: Messages to send, each with the error that it reports, or None.
        self._ready: deque[tuple[bytes, BacklineError | None]] = deque()
        self._ended = False
        self._failure: BaseException | None = None
        self._answered = asyncio.Event()
        self._room = asyncio.Event()
        self._strict = call.metadata.get(b"triton_grpc_error", b"").lower() == b"true"
        self._response = message("inference.ModelStreamInferResponse")
        # One of these is appended to an encoded response to say whether it is the last: concatenated protobuf
        # messages merge into one.
        part = message("inference.ModelInferResponse")
        self._last: bytes = part(parameters={FINAL: {"bool_param": True}}).SerializeToString()
        self._not_last: bytes = part(parameters={FINAL: {"bool_param": False}}).SerializeToString()

    # reading and writing

    async def read(self) -> None:
        """Receives and submits the client's requests."""
        try:
            while (received := await self._call.receive()) is not None:
                await self._take(received)
                while not self._budget.has_room:
                    self._room.clear()
                    await self._room.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as failure:  # raised again by the writer
            self._failure = failure
        finally:
            self._ended = True
            self._answered.set()

    async def write(self) -> None:
        """Sends responses until the client has sent its last request and all requests are answered."""
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
        """Cancels the requests still in flight."""
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
            identity = self._call.identity
            try:
                try:
                    plan, id, inputs = self._inference.read(received, metadata, "", "", True)
                except LargeRequest:
                    plan, id, inputs = await self._inference.off_loop.submit(
                        partial(self._inference.read, received, metadata, "", "", False),
                        asked.size,
                        turn_of(self._call),
                    )
            except BacklineError:
                if identity is not None and identity.meter is not None:  # counts unreadable messages too
                    identity.meter.charge(None, asked.size, monotonic())
                raise
            request = plan.request("", "", id, inputs, self._call.deadline)
            keep_route(request, metadata)
            if self._inference.forward is not None:
                request = self._inference.forward.apply(request, metadata)
            admit_message(identity, Scope.INFER, request.model_name, asked.size)
            asked.request, asked.plan = request, plan
            trace = trace_arrival(self._engine, "GRPC", request.model_name, metadata, began)
            if self._is_decoupled(plan):
                self._begin_decoupled(asked)
                asked.ticket = Ticket(request, self._complete, self._respond, asked.flow, asked, trace)
            else:
                self._begin_ordered(asked)
                asked.ticket = Ticket(request, self._complete, context=asked, trace=trace)
            if identity is not None:
                identity.follow(asked.ticket)
            asked.ticket.fields = metadata
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
        except BacklineError:  # submitting the request will raise the error again
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
        if asked.request is None:  # the message could not be read
            self._begin_ordered(asked)
        self._over(asked, self._error_answer(asked, error), error)

    # responses

    def _respond(self, ticket: Ticket, response: InferResponse) -> None:
        """Sends a response of a decoupled model; more may follow."""
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
        ticket.context = None  # breaks a reference cycle
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
        """Ends a request. `answer` is the only or last response; empty if a decoupled model sends no further
        response.
        """
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
            first.error = None  # its traceback refers to `first`, which holds the request
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

    # encoding of responses

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
    """Counts the requests in flight and the unsent responses of one stream. Records the size of each model's
    last response, as an estimate for the next one.
    """

    def __init__(self, answer_sizes: Memo[str, int]) -> None:
        self._answer_sizes = answer_sizes
        self._requests = 0
        self._request_bytes = 0
        #: The number of requests that will have exactly one response, by model.
        self._expected: dict[str, int] = {}
        self._waiting = 0
        self._waiting_bytes = 0

    def begun(self, size: int, model: str | None) -> None:
        """Counts a request of `size` bytes; `model` is None for decoupled models, which can be paused."""
        self._requests += 1
        self._request_bytes += size
        if model is not None:
            self._expected[model] = self._expected.get(model, 0) + 1

    def ended(self, size: int, model: str | None, answer: int | None) -> None:
        """Counts a request of `size` bytes as ended. `answer` is the size of the response, or None for an
        error.
        """
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
        """Counts a response of `size` bytes that waits to be sent."""
        self._waiting += 1
        self._waiting_bytes += size

    def sent(self, size: int) -> None:
        """Counts a waiting response of `size` bytes as sent."""
        self._waiting -= 1
        self._waiting_bytes -= size

    @property
    def has_room(self) -> bool:
        """Whether the next request may be read."""
        in_flight = self._requests + self._waiting
        if not in_flight:
            return True
        expected = sum(
            (self._answer_sizes.get(model) or 0) * count for model, count in self._expected.items()
        )
        return in_flight < MAX_IN_FLIGHT and self._request_bytes + self._waiting_bytes + expected < MAX_BYTES

    @property
    def is_full(self) -> bool:
        """Whether decoupled models should pause until responses are sent."""
        return self._waiting >= MAX_WAITING or self._waiting_bytes >= MAX_WAITING_BYTES

    @property
    def wants_responses(self) -> bool:
        """Whether paused models may resume."""
        return self._waiting <= MAX_WAITING // 2 and self._waiting_bytes <= MAX_WAITING_BYTES // 2
