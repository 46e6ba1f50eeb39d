"""The requests that a model in a worker process can make to the server, from any thread or coroutine: calls
of other models, questions about models, and metrics.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from math import inf
from socket import socket
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from backline.workers.channel.arena import pack_columns, unpack_columns, when_unused
from backline.workers.channel.protocol import (
    Ask,
    Buffer,
    Column,
    Kind,
    Log,
    Measure,
    NumberList,
    Readiness,
    RequestNote,
    Response,
    WorkerCall,
    WorkerProtocolError,
    failure_of,
    frame,
)
from backline.workers.child.answers import (
    AsyncCallStream,
    AsyncMailbox,
    CallStream,
    ChannelReader,
    Deliver,
    End,
    Heard,
    Mailbox,
    response_of,
    value_of,
)
from backline.workers.child.connection import DataChannel
from backline.workers.child.requests import WorkerRequest
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Cancelled, Internal, Unavailable
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.engine.custom_metrics import MetricKind

_CLOSED = "the connection of this worker to the server is closed"


@dataclass(frozen=True, slots=True)
class ModelCall:
    """A call of another model of the server.

    `requests` are the requests for which the call is made, if known. The call inherits their deadline and
    priority, and is cancelled when all these requests are cancelled. `note` has the call's own properties,
    with `timeout` in seconds. `queue_timeout` is in seconds, or 0 for the called model's default. `version`
    may be a label; if it is empty, the server chooses the version. If `requests` is empty, `traced` lists the
    numbers of the requests to whose traces the call belongs.
    """

    model: str
    inputs: Sequence[Tensor]
    version: str = ""
    requests: Sequence[WorkerRequest] = ()
    note: RequestNote = field(default_factory=RequestNote)
    queue_timeout: float = 0.0
    traced: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question to the server about its models, or a request to load or unload one; see `Caller.ask`.

    "ready" returns whether the model can serve or, for an empty name, whether the server is ready. "describe"
    returns protocol.Described as plain lists. "load" and "unload" return None once the model is loaded or
    unloaded. `config` (a configuration as JSON) and `files` (contents by path below the model's folder)
    replace the configuration and files in the repository. With `dependents`, an unload of an ensemble also
    unloads the models that it calls and that no other ensemble calls. `requests` are as in ModelCall.
    """

    what: Literal["ready", "describe", "load", "unload"]
    model: str = ""
    version: str = ""
    config: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    dependents: bool = False
    requests: Sequence[WorkerRequest] = ()


@dataclass(frozen=True, slots=True)
class _PendingCall:
    """A call in flight: the function that delivers its answers, and the requests for which the call is
    made.
    """

    deliver: Deliver
    requests: Sequence[WorkerRequest] = ()


class Caller:
    """The worker's end of the calls channel. Thread-safe. Methods may raise BacklineError."""

    def __init__(self, channel: socket, connection: DataChannel) -> None:
        self._channel = channel
        self._connection = connection
        self._numbers = count(1)
        self._waiting: dict[int, _PendingCall] = {}
        #: Held while a frame is written, so that frames of several threads do not interleave.
        self._lock = threading.Lock()
        self._reader = ChannelReader(channel, self._take, self._ended, lambda: bool(self._waiting))

    # calling other models

    def infer(self, call: ModelCall) -> InferResponse:
        """Calls a model that is not decoupled, and returns its response. Blocks."""
        heard = Mailbox()
        number = self._call(call, heard.put)
        try:
            self._reader.wait(heard)
            return response_of(heard.get(inf))
        finally:
            self.drop(number)

    async def infer_async(self, call: ModelCall) -> InferResponse:
        """The asynchronous counterpart of `infer`. Cancelling the coroutine cancels the call."""
        self._reader.listen()
        heard = AsyncMailbox()
        number = self._call(call, heard.put)
        try:
            return response_of(await heard.get(inf))
        finally:
            self.drop(number)

    def stream(self, call: ModelCall) -> CallStream:
        """Calls a model, and returns an iterator over its responses. The call starts immediately."""
        self._reader.listen()
        heard = Mailbox()
        return CallStream(self, self._call(call, heard.put, stream=True), heard)

    def stream_async(self, call: ModelCall) -> AsyncCallStream:
        """The asynchronous counterpart of `stream`."""
        self._reader.listen()
        heard = AsyncMailbox()
        return AsyncCallStream(self, self._call(call, heard.put, stream=True), heard)

    # asking about models

    def ask(self, question: Question, timeout: float = inf) -> Any:
        """Sends a question to the server and returns the result. Blocks. Raises DeadlineExceeded after
        `timeout` seconds; a load or unload still completes.
        """
        alone = timeout == inf  # a thread that reads the channel itself cannot time out
        if not alone:
            self._reader.listen()
        heard = Mailbox()
        number = self._ask(question, heard.put)
        try:
            if alone:
                self._reader.wait(heard)
            return value_of(heard.get(timeout))
        finally:
            self.drop(number)

    async def ask_async(self, question: Question, timeout: float = inf) -> Any:
        """The asynchronous counterpart of `ask`. A load or unload completes even if the coroutine is
        cancelled.
        """
        self._reader.listen()
        heard = AsyncMailbox()
        number = self._ask(question, heard.put)
        try:
            return value_of(await heard.get(timeout))
        finally:
            self.drop(number)

    # metrics and logging

    def measure(self, message: Measure) -> Any:
        """Sends a Measure message, and returns the value with which the server responds. Blocks."""
        heard = Mailbox()
        message.number = number = next(self._numbers)
        self._begin(number, _PendingCall(heard.put), frame(Kind.MEASURE, message))
        try:
            self._reader.wait(heard)
            return value_of(heard.get(inf))
        finally:
            self._waiting.pop(number, None)

    def tell(self, kind: Kind, message: Measure | Log | NumberList | Readiness) -> None:
        """Sends a message to which the server does not respond."""
        self._say(frame(kind, message))

    # sending to the server

    def _call(self, call: ModelCall, deliver: Deliver, *, stream: bool = False) -> int:
        number = next(self._numbers)
        columns, payload, block = self._pack(call.inputs)
        message = WorkerCall(
            number,
            [request.number for request in call.requests],
            call.model,
            call.version,
            columns,
            call.note,
            block,
            stream,
            call.queue_timeout,
            self._connection.take_let_go(),
            list(call.traced),
        )
        self._begin(number, _PendingCall(deliver, call.requests), frame(Kind.CALL, message, payload))
        return number

    def _ask(self, question: Question, deliver: Deliver) -> int:
        number = next(self._numbers)
        contents = {path: np.frombuffer(content, np.uint8) for path, content in question.files.items()}
        columns, payload, block = self._pack(
            [Tensor(path, DataType.UINT8, data.shape, data) for path, data in contents.items()]
        )
        message = Ask(
            number,
            question.what,
            question.model,
            question.version,
            question.config,
            columns,
            block,
            question.dependents,
            [request.number for request in question.requests],
        )
        self._begin(number, _PendingCall(deliver, question.requests), frame(Kind.ASK, message, payload))
        return number

    def _pack(self, tensors: Sequence[Tensor]) -> tuple[list[Column], list[Buffer], int]:
        try:
            with self._connection.lock:
                packed, payload, block = pack_columns(
                    [[(tensor,) for tensor in tensors]], self._connection.arena
                )
        except MemoryError as error:
            raise Internal(f"the inputs of a call cannot be sent: {error}") from None
        return packed[0], payload, block

    def _begin(self, number: int, waiting: _PendingCall, message: bytes) -> None:
        if self._reader.ended:
            raise Unavailable(_CLOSED)
        # The call is registered before the message is sent, because the response may arrive before `_say`
        # returns. If the channel has ended since the check above, `_say` raises.
        self._waiting[number] = waiting
        try:
            self._say(message)
        except BacklineError:
            del self._waiting[number]
            raise

    def drop(self, number: int) -> None:
        """Cancels a call unless it has ended."""
        if self._waiting.pop(number, None) is not None:
            with suppress(Unavailable):
                self._say(frame(Kind.DROP, NumberList([number])))

    def end_calls(self, requests: Sequence[WorkerRequest]) -> None:
        """Cancels the calls in flight that were made only for these requests. Called once the requests have
        been answered.
        """
        for number, waiting in tuple(self._waiting.items()):
            if waiting.requests and all(request in requests for request in waiting.requests):
                self.drop(number)
                waiting.deliver(Cancelled("the request that the call was made for has been answered"))

    def take_more(self, number: int, responses: int) -> None:
        """Allows the server to send this many further responses to the call."""
        if number in self._waiting:
            self._say(frame(Kind.MORE, NumberList([number, responses])))

    def _say(self, message: bytes) -> None:
        try:
            with self._lock:
                self._channel.sendall(message)
        except OSError as error:
            raise Unavailable(
                f"the server can no longer be called: {error}."
                " Only the worker process itself can call it, not a process that it forked"
            ) from None

    # receiving from the server

    def _ended(self) -> None:
        for number in tuple(self._waiting):
            self._hear(number, Unavailable(_CLOSED), last=True)

    def _take(self, kind: Kind, message: Any, payload: memoryview) -> None:
        if kind is Kind.RESPONSE:
            self._connection.take_back(message.returned)
            self._hear(message.number, self._read(message, payload), last=False)
            if message.last:
                self._hear(message.number, End(alone=False), last=True)
        elif kind is Kind.ENDED:
            self._hear(message.number, failure_of(message) if message.kind else End(message.value), last=True)
        else:
            raise WorkerProtocolError(f"a frame of kind {kind.name}, which may not be sent on this channel")

    def _hear(self, number: int, heard: Heard, *, last: bool) -> None:
        waiting = self._waiting.pop(number, None) if last else self._waiting.get(number)
        if waiting is not None:
            waiting.deliver(heard)

    def _read(self, message: Response, payload: memoryview) -> InferResponse:
        block: np.ndarray | None = None
        if message.block >= 0:
            connection, at = self._connection, message.block
            end = max((column.at + column.size for column in message.columns), default=at)
            block = connection.arena.read(at, end - at, writable=True)
            when_unused(block, lambda: connection.let_go.append(at))
        tensors, _ = unpack_columns(message.columns, payload, 0, block, message.block)
        return InferResponse(
            message.model, message.version, message.id, list(tensors.values()), message.parameters or None
        )


class Measures:
    """Sends the values of the model's metrics to the server. May be used on any thread. Responses are sent on
    another channel, so the server may handle a response before it records a value that was sent earlier.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def declare(self, name: str, kind: MetricKind, description: str) -> None:
        """Adds a metric. Waits for the server, which may refuse it with InvalidArgument or AlreadyExists."""
        self._caller.measure(Measure("declare", name, kind=kind, description=description))

    def create(self, name: str, labels: Mapping[str, str], bounds: Sequence[float] = ()) -> None:
        """Creates the metric for a combination of labels, so that the metrics page shows it even before a
        value is recorded.
        """
        self._tell(Measure("create", name, dict(labels), list(bounds)))

    def record(
        self,
        action: Literal["increment", "set", "observe"],
        name: str,
        labels: Mapping[str, str],
        value: float,
        bounds: Sequence[float] = (),
    ) -> None:
        """Increments the metric by `value`, sets it to `value`, or adds `value` to a histogram whose buckets
        have the upper bounds `bounds`.
        """
        self._tell(Measure(action, name, dict(labels), list(bounds), value))

    def value(self, name: str, labels: Mapping[str, str]) -> float:
        """Returns the metric's current value, summed over all workers by the server. Waits for the server."""
        value: Any = self._caller.measure(Measure("value", name, dict(labels)))
        return float(value)

    def _tell(self, message: Measure) -> None:
        try:
            self._caller.tell(Kind.MEASURE, message)
        except Unavailable:  # the server has ended, or this process is a fork
            return
