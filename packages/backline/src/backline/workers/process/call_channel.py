"""Serves the calls channel of a worker: calls of other models, questions, metrics and log lines."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from socket import socket
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Any

from backline.engine.deadline import watch
from backline.engine.ticket import Ticket
from backline.engine.tracing import part_of
from backline.workers.channel.arena import pack_columns, unpack_columns
from backline.workers.channel.calls import Calls, Outcome
from backline.workers.channel.protocol import (
    WINDOW,
    Ask,
    Column,
    Ended,
    Kind,
    Measure,
    Response,
    WorkerCall,
    WorkerProtocolError,
    frame,
)
from backline.workers.process.channel_end import ChannelEnd
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Cancelled, Internal, InvalidArgument, Unsupported
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow, SequenceStep
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.workers.process.process import WorkerProcess

log = logging.getLogger("backline.workers")
model_log = logging.getLogger("backline.model")

#: The maximum number of bytes that the inputs of a worker's calls in flight may occupy in the worker's half
#: of the shared memory. Further inputs are copied out of it, so that slow callees cannot fill that half.
_MAX_HELD = 1 << 28
_NOBODY_WAITS = "the requests that the call was made for were cancelled"


@dataclass(slots=True)
class _Open:
    """A call in flight. `asked` are the worker's requests for which the call is made. `unread` is the number
    of responses that were sent but that the model has not read yet.
    """

    ticket: Ticket
    asked: Sequence[Ticket]
    began_ns: int
    unread: int = 0


class CallChannel:
    """The server's end of the calls channel of one worker. Use it only on the event loop.

    `open_requests` returns the open requests with the given numbers. The numbers come from the worker, so
    `open_requests` ignores unknown ones: a worker must not be able to attach a call to requests that it does
    not have.
    """

    def __init__(
        self,
        calls: Calls | None,
        open_requests: Callable[[Sequence[int]], list[Ticket]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._calls = calls
        self._open_requests = open_requests
        self._loop = loop
        self._open: dict[int, _Open] = {}
        #: The requests on whose behalf each open question was asked, by the question's number.
        self._questions: dict[int, Sequence[Ticket]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def attend(self, channel: socket, process: WorkerProcess) -> None:
        """Starts serving the socket `channel` for a worker process."""
        self._process = process
        # The end of this channel needs no handler, because the other channels report that the process has
        # ended.
        self._channel = ChannelEnd(channel, self._loop, self._take, process.kill, poll=process.poll)

    def close(self) -> None:
        """Cancels the worker's calls, because the worker has ended."""
        self._channel.close()
        self._questions.clear()
        for number in tuple(self._open):
            self._give_up(number)

    def abandoned(self) -> None:
        """Cancels calls whose requests are all cancelled. Called after requests have been cancelled."""
        for number, one in tuple(self._open.items()):
            if _is_for_nobody(one.asked):
                self._give_up(number)
                self._fail(number, Cancelled(_NOBODY_WAITS))
        for number, asked in tuple(self._questions.items()):
            if _is_for_nobody(asked):
                self._tell(number, Cancelled(_NOBODY_WAITS))

    # receiving from the worker

    def _take(self, kind: Kind, message: Any, payload: memoryview) -> None:
        if kind in (Kind.CALL, Kind.ASK) and (
            message.number in self._open or message.number in self._questions
        ):
            raise WorkerProtocolError(f"a second {kind.name} with number {message.number}")
        if kind is Kind.CALL:
            for at in message.returned:
                self._process.arena.give_back(at)
            self._call(message, self._tensors(message.columns, message.block, payload))
        elif kind is Kind.ASK:
            if any(file.datatype != DataType.UINT8.name for file in message.files):
                raise WorkerProtocolError("a file that is not a column of UINT8")
            self._ask(message, self._tensors(message.files, message.block, payload))
        elif kind is Kind.DROP:
            for number in message.numbers:
                self._give_up(number)
                # This wakes the worker's thread that waits for a response to this call, if there is one.
                self._fail(number, Cancelled("the call was dropped"))
        elif kind is Kind.MORE:
            number, count = _exactly(2, message.numbers)
            self._more(number, count)
        elif kind is Kind.MEASURE:
            self._measure(message)
        elif kind is Kind.LIMIT:
            (limit,) = _exactly(1, message.numbers)
            self._process.limit_memory(limit)
        elif kind is Kind.READY:
            self._process.says_ready(message.reason)
        elif kind is Kind.LOG:
            # Only the five standard levels, because `logging` keeps an entry for every level it has seen.
            level = min(max(message.level // 10 * 10, logging.DEBUG), logging.CRITICAL)
            model_log.log(level, "%s: %s", self._process.command.label, message.text)
        else:
            raise WorkerProtocolError(f"a frame of kind {kind.name}, which may not be sent on this channel")

    def _measure(self, message: Measure) -> None:
        try:
            if self._calls is None:
                raise Unsupported("metrics are not available: this model runs without a server")
            value = self._calls.measure(message)
        except BacklineError as error:
            if message.number:
                self._fail(message.number, error)
            else:
                model_log.warning("%s: %s", self._process.command.label, error.message)
        else:
            if message.number:
                self._say(Kind.ENDED, Ended(message.number, value=value))

    def _tensors(self, columns: Sequence[Column], at: int, payload: memoryview) -> dict[str, Tensor]:
        if at < 0:
            return unpack_columns(columns, payload, 0, None, at)[0]
        end = max((column.at + column.size for column in columns), default=at)
        process = self._process
        block = process.arena.read(at, end - at)
        if process.hold(block, at) > _MAX_HELD:
            block = block.copy()
        return unpack_columns(columns, payload, 0, block, at)[0]

    # calls of other models

    def _call(self, message: WorkerCall, inputs: dict[str, Tensor]) -> None:
        number = message.number
        if self._calls is None:
            why = f"model '{message.model}' cannot be called: this model runs without a server"
            self._fail(number, Unsupported(why))
            return
        limits = message.note.timeout, message.queue_timeout
        if not all(map(isfinite, limits)):  # NaN would break the order of the event loop's timers
            why = f"the timeouts of a call must be finite, got {limits[0]} s and {limits[1]} s"
            self._fail(number, InvalidArgument(why))
            return
        asked = self._open_requests(message.requests)
        if message.requests and all(ticket.cancelled for ticket in asked):
            self._fail(number, Cancelled(_NOBODY_WAITS))
            return
        ticket = Ticket(
            self._request(message, inputs, asked),
            partial(self._completed, number),
            partial(self._responded, number) if message.stream else None,
            ResponseFlow() if message.stream else None,
            trace=part_of(self._open_requests(message.traced) if message.traced else asked),
        )
        if asked:
            # Security: the call acts for the caller whose request the model is serving. So it takes that
            # caller's turns in queues, and can continue only that caller's sequences.
            ticket.identity = asked[0].identity
        self._open[number] = _Open(ticket, asked, monotonic_ns())
        if ticket.deadline is not None:
            watch(ticket, ticket.deadline)
        try:
            self._calls.submit(ticket)
        except BacklineError as error:
            error.refused = True
            ticket.refuse(error)
            self._end(number, error)
        except Exception as error:
            log.exception("a call of model '%s' could not be submitted", message.model)
            ticket.refuse(Internal(f"{type(error).__name__}: {error}"))
            self._end(number, Internal(f"the call of model '{message.model}' failed: {type(error).__name__}"))

    def _request(
        self, message: WorkerCall, inputs: dict[str, Tensor], asked: Sequence[Ticket]
    ) -> InferRequest:
        """Converts a call to a request to the engine. The call gets the latest of the deadlines of the
        requests in `asked`, if all have one, or its own deadline if that is earlier. Without a priority of
        its own, the call gets the highest of their priorities.
        """
        note = message.note
        limits = [monotonic() + note.timeout] if note.timeout else []
        waiting = [ticket.waits_until for ticket in asked]
        if waiting and None not in waiting:
            limits.append(max(deadline for deadline in waiting if deadline is not None))
        priority = note.priority or min((ticket.level for ticket in asked if ticket.level), default=0)
        return InferRequest(
            message.model,
            inputs,
            model_version=message.version,
            id=note.id,
            outputs=None if note.outputs is None else tuple(note.outputs),
            parameters=note.parameters or None,
            priority=priority,
            deadline=min(limits, default=None),
            timeout=message.queue_timeout or None,
            sequence=SequenceStep(note.sequence, note.sequence_start, note.sequence_end)
            if note.sequence
            else None,
            via=next((ticket.request.via for ticket in asked if ticket.request.via), b""),
        )

    def _responded(self, number: int, ticket: Ticket, response: InferResponse) -> None:
        one = self._open.get(number)
        if one is None:
            return
        one.unread += 1
        if one.unread >= WINDOW and ticket.flow is not None:
            ticket.flow.pause()
        try:
            self._respond(number, response, last=False)
        except Internal as error:
            ticket.cancel()
            self._end(number, error)

    def _more(self, number: int, count: int) -> None:
        one = self._open.get(number)
        if one is None or one.ticket.flow is None:
            return
        if not 0 < count <= one.unread:
            raise WorkerProtocolError(f"credit for {count} responses, while {one.unread} were unread")
        one.unread -= count
        if one.ticket.flow.paused and one.unread < WINDOW:
            one.ticket.flow.resume()

    def _completed(
        self, number: int, _: Ticket, response: InferResponse | None, error: BacklineError | None
    ) -> None:
        if number in self._open:
            self._end(number, error, response)

    def _end(self, number: int, error: BacklineError | None, response: InferResponse | None = None) -> None:
        """Completes a call with an error, a last response, or neither."""
        try:
            if error is not None:
                self._fail(number, error)
            elif response is not None:
                self._respond(number, response, last=True)
            else:
                self._say(Kind.ENDED, Ended(number))
        except Internal as too_large:
            error = too_large
            self._fail(number, error)
        self._close(number, "success" if error is None else "fail")

    def _give_up(self, number: int) -> None:
        """Cancels a call or a question, if it is open."""
        self._questions.pop(number, None)
        one = self._open.get(number)
        if one is not None:
            self._close(number, "cancel")
            # The call is closed first, so that no more responses to it are sent. A paused model is resumed,
            # so that its run can end.
            one.ticket.cancel()
            if one.ticket.flow is not None:
                one.ticket.flow.resume()

    def _close(self, number: int, outcome: Outcome) -> None:
        one = self._open.pop(number)
        assert self._calls is not None, "there are no calls without it"
        self._calls.ended(one.ticket, outcome, monotonic_ns() - one.began_ns)

    # questions about models

    def _ask(self, message: Ask, files: Mapping[str, Tensor]) -> None:
        self._questions[message.number] = self._open_requests(message.requests)
        task = self._loop.create_task(self._answer(message, files))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, message: Ask, files: Mapping[str, Tensor]) -> None:
        try:
            value = await self._value(message, files)
        except BacklineError as error:
            self._tell(message.number, error)
        except Exception as error:
            log.exception(
                "the '%s' of model '%s' that a worker requested failed", message.what, message.model
            )
            self._tell(
                message.number,
                Internal(f"{message.what} of model '{message.model}' failed: {type(error).__name__}"),
            )
        else:
            self._tell(message.number, value)

    def _tell(self, number: int, found: Any) -> None:
        """Sends the result of a question to the worker, unless the question has been answered or
        cancelled.
        """
        if self._questions.pop(number, None) is None:
            return
        if isinstance(found, BacklineError):
            self._fail(number, found)
        else:
            self._say(Kind.ENDED, Ended(number, value=found))

    async def _value(self, message: Ask, files: Mapping[str, Tensor]) -> Any:
        calls, model, version = self._calls, message.model, message.version
        if calls is None:
            raise Unsupported("other models are not available: this model runs without a server")
        match message.what:
            case "ready":
                return calls.is_ready(model, version)
            case "describe":
                return await calls.describe(model, version)
            case "load":
                contents = {path: file.data.tobytes() for path, file in files.items()}
                return await calls.load(model, version, message.config, contents)
            case "unload":
                return await calls.unload(model, version, dependents=message.dependents)
        raise Unsupported(f"a worker asks for '{message.what}', which is unknown")

    # sending to the worker

    def _respond(self, number: int, response: InferResponse, *, last: bool) -> None:
        """Sends a response. Raises Internal if the response does not fit into the shared memory."""
        try:
            columns, payload, block = pack_columns(
                [[(tensor,) for tensor in response.outputs]], self._process.arena
            )
        except MemoryError as error:
            raise Internal(f"the response of model '{response.model_name}' cannot be sent: {error}") from None
        message = Response(
            number,
            response.model_name,
            response.model_version,
            response.id,
            columns[0],
            response.parameters or {},
            block,
            last,
            self._process.take_unused(),
        )
        self._say(Kind.RESPONSE, message, payload)

    def _fail(self, number: int, error: BacklineError) -> None:
        ended = Ended(number, type(error).__name__, error.message, error.retry_after, refused=error.refused)
        self._say(Kind.ENDED, ended)

    def _say(self, kind: Kind, message: Response | Ended, payload: Iterable[Any] = ()) -> None:
        self._channel.send(frame(kind, message, list(payload)))


def _exactly(count: int, numbers: list[int]) -> list[int]:
    """Returns `numbers`. Raises WorkerProtocolError if there are not `count` of them."""
    if len(numbers) != count:
        raise WorkerProtocolError(f"a message with {len(numbers)} numbers, expected {count}")
    return numbers


def _is_for_nobody(asked: Sequence[Ticket]) -> bool:
    """Returns whether all these requests are cancelled, or False if there are none, as for a call without
    requests.
    """
    return bool(asked) and all(request.cancelled for request in asked)
