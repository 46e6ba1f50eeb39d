"""The seats of a worker pool. A seat keeps its place in the pool when its worker process is replaced."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING

import numpy as np

from backline.engine.errors import BacklineError, Cancelled, Internal
from backline.engine.ticket import Ticket
from backline.engine.values.device import Place
from backline.engine.values.messages import InferResponse, Rescheduled
from backline.engine.values.tensor import Tensor
from backline.system.standstill import stood_still
from backline.workers.channel.arena import pack_columns, unpack_columns
from backline.workers.channel.protocol import (
    WINDOW,
    Execute,
    Part,
    RequestFailure,
    RequestNote,
    Result,
    WorkerLoaded,
    failure_of,
)
from backline.workers.process.call_channel import CallChannel
from backline.workers.process.job import Job
from backline.workers.process.process import WorkerProcess

if TYPE_CHECKING:
    from backline.workers.process.pool import WorkerPool

#: The maximum number of bytes of the worker's half of the shared memory that responses in flight may hold.
#: Further responses are copied, so that slow clients cannot use up that half.
_MAX_HELD = 1 << 28
#: The maximum number of requests without a last response at which a worker still gets the next batch.
_OPEN_REQUESTS = 1024
#: The maximum queue timeout in microseconds that the message's field can hold. As a float, a timeout just
#: below 2**64 is rounded up to 2**64.
_LONGEST_QUEUE_TIMEOUT = 2**64 - 1


class Seat:
    """The place of one worker in its pool: the current process, and the batches sent to it. Use it only on
    the event loop. `usable` means that the worker has loaded the model, `free` that the worker can take a
    batch.
    """

    def __init__(self, pool: WorkerPool, place: Place) -> None:
        self._pool = pool
        self._place = place
        self.process: WorkerProcess | None = None
        #: A new object for each worker, because the state of sequences is lost with the worker (see
        #: Remembers).
        self.memory: object = None
        self.usable = False
        #: The number of consecutive workers of this seat that ended without any RESULT.
        self.failures = 0
        #: Why the last worker ended.
        self.reason = ""
        self._batches = 0
        #: The job, the shared memory with its inputs, and the start time of each batch, by batch number.
        self._jobs: dict[int, Job] = {}
        self._blocks: dict[int, int] = {}
        self._started: dict[int, float] = {}
        #: The jobs that exceeded the execution timeout, for which the worker is being killed.
        self._late: list[Job] = []
        #: The job of each request that has no outcome yet, by request number.
        self._open: dict[int, Job] = {}
        #: The credit that each request has used and has not been granted again, in responses, by request
        #: number.
        self._owed: dict[int, int] = {}
        self._watch: asyncio.TimerHandle | None = None
        #: An event that is set once a retiring seat has nothing left to do.
        self._at_rest: asyncio.Event | None = None

    @property
    def free(self) -> bool:
        return self.usable and len(self._jobs) < self._pool.loaded.concurrency

    async def start(self) -> WorkerLoaded:
        """Starts a worker for this seat. Raises Internal with the reason if it cannot load the model."""
        pool = self._pool
        calls = CallChannel(pool.calls, self._open_requests, pool.loop)
        self.process = process = pool.options.worker(
            pool.command_for(self._place), pool.loop, self._result, self._ended, calls
        )
        process.on_ready = pool.look_at_readiness
        process.poll = pool.poll
        loaded = await process.start()
        self.usable = True
        self.memory = object()
        return loaded

    async def retire(self) -> None:
        """Gives the worker no more batches, and stops it once it has responded to those it has."""
        self.usable = False
        self._at_rest = asyncio.Event()
        self._look_at_rest()
        await self._at_rest.wait()
        await self.stop()

    def _look_at_rest(self) -> None:
        if self._at_rest is not None and not self._jobs and not self._open:
            self._at_rest.set()

    async def stop(self) -> None:
        """Stops the process, if there is one."""
        self.usable = False
        if self._watch is not None:
            self._watch.cancel()
        if self.process is not None:
            await self.process.stop()

    # sending to the worker

    def send(self, job: Job) -> None:
        """Sends a job's requests to the worker."""
        process = self.process
        assert process is not None, "it is free"
        tickets = job.tickets
        numbers = [self._pool.next_number() for _ in tickets]
        job.by_number = dict(zip(numbers, job.positions, strict=True))
        together = [[ticket] for ticket in tickets] if self._pool.apart else [tickets]
        columns = [
            [[ticket.request.inputs[name] for ticket in part] for name in part[0].request.inputs]
            for part in together
        ]
        try:
            packed, payload, block = pack_columns(columns, process.arena)
        except MemoryError as error:
            job.fail(Internal(f"{self._pool.label}: {error}"))
            return
        if self._pool.apart:
            parts = [Part([number], [], own) for number, own in zip(numbers, packed, strict=True)]
        else:
            rows = [ticket.batch_size for ticket in tickets] if len(tickets) > 1 else []
            parts = [Part(numbers, rows, packed[0])]
        job.run.batch.executed = True
        self._batches += 1
        batch = self._batches
        notes = [_note(ticket) for ticket in tickets] if any(map(_says_something, tickets)) else []
        self._jobs[batch] = job
        for number in numbers:
            self._open[number] = job
        if block >= 0:
            self._blocks[batch] = block
        self._started[batch] = monotonic()
        if self._watch is None:
            self._watch = self._pool.loop.call_later(self._pool.execution_timeout, self._look_at_time)
        job.run.batch.on_abandon = lambda: process.cancel(numbers)
        for number, ticket in zip(numbers, tickets, strict=True):
            if ticket.flow is not None:
                ticket.flow.on_resume = lambda number=number: self._resumed(number)
        try:
            process.execute(Execute(batch, parts, notes, block), payload)
        except (OverflowError, TypeError, UnicodeEncodeError) as error:
            # Values that an embedding program passes have not been validated by a dialect.
            self._take_back(batch, numbers)
            self._pool.refused(job, error)

    def _take_back(self, batch: int, numbers: Sequence[int]) -> None:
        """Undoes the bookkeeping of a batch that could not be sent."""
        del self._jobs[batch], self._started[batch]
        for number in numbers:
            del self._open[number]
        if (block := self._blocks.pop(batch, -1)) >= 0 and self.process is not None:
            self.process.arena.give_back(block)

    # receiving from the worker

    def _result(self, process: WorkerProcess, result: Result, payload: memoryview) -> None:
        block: np.ndarray | None = None
        if result.block >= 0:
            end = max(
                (column.at + column.size for part in result.parts for column in part.columns),
                default=result.block,
            )
            block = process.arena.read(result.block, end - result.block)
            if process.hold(block, result.block) > _MAX_HELD:
                block = block.copy()
        job = self._jobs.get(result.batch)
        if job is not None and result.done:
            del self._jobs[result.batch]
            self._started.pop(result.batch, None)
            lent = self._blocks.pop(result.batch, -1)
            if lent >= 0 and not result.kept:
                process.arena.give_back(lent)
            job.run.batch.gathered_ns, job.run.batch.ran_ns = result.began_ns, result.ran_ns
            self._pool.has_room(self)
        elif job is not None:  # a stream continues: the execution timeout applies to each response
            self._started[result.batch] = monotonic()
        offset = 0
        for part in result.parts:
            tensors, offset = unpack_columns(part.columns, payload, offset, block, result.block)
            self._part(part, tensors)
        for failure in result.failures:
            self._failure(failure)
        for number in result.ended:
            self._end(number)
        load = self._pool.command.load
        for number in result.rescheduled:
            self._settle(number, Rescheduled(load.name, load.version, "", []))
        # A deferred model takes the next batch before it has responded to all requests of this one, unless
        # too many requests have no response.
        owes = result.done and job is not None and job.open and self._pool.loaded.deferred
        if job is not None and owes and len(self._open) < _OPEN_REQUESTS:
            job.run.vacate()
        self._look_at_rest()

    def _part(self, part: Part, tensors: dict[str, Tensor]) -> None:
        start = 0
        load, decoupled, opened, rows = (
            self._pool.command.load,
            self._pool.loaded.decoupled,
            self._open,
            part.rows,
        )
        whole = list(tensors.values())
        for index, number in enumerate(part.numbers):
            outputs = whole
            if rows:
                end = start + rows[index]
                outputs = [_rows(tensor, start, end) for tensor in whole]
                start = end
            job = opened.get(number)
            if job is None:  # the request has had its last response, or the worker invented the number
                continue
            ticket = job.run.batch.tickets[job.by_number[number]]
            if ticket.request.outputs is not None:
                outputs = [tensor for tensor in outputs if tensor.name in ticket.request.outputs]
            response = InferResponse(
                load.name, load.version, ticket.request.id, outputs, dict(part.parameters) or None
            )
            if part.more:
                self._respond(job, number, ticket, response)
            elif decoupled and ticket.cancelled:
                self._end(number)
            else:
                self._settle(number, response)

    def _respond(self, job: Job, number: int, ticket: Ticket, response: InferResponse) -> None:
        """Delivers one response of a decoupled model.

        Grants new credit unless the client is paused. Credit is granted half a window at a time, because each
        grant wakes a thread of the worker.
        """
        owed = self._owed[number] = self._owed.get(number, 0) + 1
        job.run.respond(job.by_number[number], response)
        if owed >= WINDOW // 2 and (ticket.flow is None or not ticket.flow.paused):
            self._resumed(number)

    def _failure(self, failure: RequestFailure) -> None:
        error = failure_of(failure)
        if type(error) is Internal:
            error = Internal(f"{self._pool.label} failed: {failure.message}")
        self._settle(failure.number, error)

    def _end(self, number: int) -> None:
        """Ends a request that gets no further response."""
        job = self._open.get(number)
        cancelled = job is not None and job.run.batch.tickets[job.by_number[number]].cancelled
        self._settle(number, Cancelled("the request was cancelled") if cancelled else None)

    def _settle(self, number: int, outcome: InferResponse | BacklineError | None) -> None:
        job = self._open.pop(number, None)
        self._owed.pop(number, None)
        if job is not None:
            job.settle(job.by_number[number], outcome)

    def _resumed(self, number: int) -> None:
        """Grants again the credit that the request has used."""
        owed = self._owed.pop(number, 0)
        if owed and self.process is not None and number in self._open:
            self.process.credit(number, owed)

    def _open_requests(self, numbers: Sequence[int]) -> list[Ticket]:
        """Returns the open requests with these numbers. Ignores unknown numbers, because workers are not
        trusted.
        """
        jobs = self._open
        return [jobs[one].run.batch.tickets[jobs[one].by_number[one]] for one in numbers if one in jobs]

    # handling hangs and crashes

    def _look_at_time(self) -> None:
        """Kills the worker if its batch exceeds the execution timeout; otherwise sets the timer for the next
        batch.
        """
        watch, self._watch = self._watch, None
        limit = self._pool.execution_timeout
        if not self._started or self.process is None:
            return
        now = monotonic()
        # After the server was suspended, results may be waiting in the socket.
        if watch is not None and stood_still(watch, self._pool.loop):
            self._started = dict.fromkeys(self._started, now)
        left = min(self._started.values()) + limit - now
        if left <= 0:
            self._late = [job for batch, job in self._jobs.items() if self._started[batch] + limit <= now]
            self.process.hang(f"did not finish within {limit:g} s and was killed")
        else:
            self._watch = self._pool.loop.call_later(left, self._look_at_time)

    def _ended(self, process: WorkerProcess, reason: str) -> None:
        if process is not self.process:
            return
        self.memory = None
        was_usable, self.usable = self.usable, False
        self.process = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        jobs = list(dict.fromkeys(self._open.values()))
        hung, self._late = self._late, []
        for state in (self._jobs, self._blocks, self._started, self._open, self._owed):
            state.clear()
        if was_usable:
            self._pool.ended(self, reason, proved=process.proved)
        self._pool.retry(jobs, reason, hung)
        self._look_at_rest()


def _says_something(ticket: Ticket) -> bool:
    return bool(
        ticket.request.id
        or ticket.request.parameters
        or ticket.request.outputs is not None
        or ticket.request.sequence is not None
        or ticket.request.timeout
        or ticket.trace is not None
    )


def _note(ticket: Ticket) -> RequestNote:
    step = ticket.request.sequence
    note = RequestNote(
        ticket.request.id,
        ticket.request.parameters or {},
        None if ticket.request.outputs is None else list(ticket.request.outputs),
        queue_timeout_us=min(round((ticket.request.timeout or 0.0) * 1e6), _LONGEST_QUEUE_TIMEOUT),
        trace="" if ticket.trace is None else ticket.trace.context,
    )
    if step is not None:
        note.sequence, note.sequence_start, note.sequence_end = step.id, step.start, step.end
    return note


def _rows(tensor: Tensor, start: int, end: int) -> Tensor:
    data = tensor.data[start:end]
    return Tensor(tensor.name, tensor.datatype, data.shape, data)
