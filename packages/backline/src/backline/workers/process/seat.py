"""The seats of a worker pool. A seat keeps its place in the pool when its worker process is replaced."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from itertools import repeat
from time import monotonic
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from backline.engine.device import Place
from backline.engine.ticket import Ticket
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
    WorkerProtocolError,
    failure_of,
)
from backline.workers.process.call_channel import CallChannel
from backline.workers.process.job import Job
from backline.workers.process.process import WorkerProcess
from backline_client.values.errors import BacklineError, Cancelled, Internal
from backline_client.values.messages import InferResponse, Rescheduled
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.workers.process.pool import WorkerPool

#: A request that has no outcome yet: its job, its position in the batch, and its ticket.
_Open: TypeAlias = tuple[Job, int, Ticket]
#: The maximum number of bytes that responses in flight may occupy in the worker's half of the shared memory.
#: Further responses are copied out of it, so that slow clients cannot fill that half.
_MAX_HELD = 1 << 28
#: A worker of a deferred model gets no further batch while this many of its requests lack their last
#: response.
_OPEN_REQUESTS = 1024
#: The maximum queue timeout, in microseconds, that fits into RequestNote. The limit is needed because a
#: timeout just below 2**64 becomes 2**64 as a float.
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
        #: Each worker gets a new object, because the state of sequences is lost with the worker; see
        #: Remembers.
        self.memory: object = None
        self.usable = False
        #: The number of consecutive workers of this seat that ended without any RESULT.
        self.failures = 0
        #: Why the last worker of this seat ended.
        self.reason = ""
        self._batches = 0
        #: The jobs of the batches in progress, by the number of the batch.
        self._jobs: dict[int, Job] = {}
        #: The block of shared memory with the inputs of each batch in progress, if they are in shared memory.
        self._blocks: dict[int, int] = {}
        #: The time, by time.monotonic(), when each batch in progress started or last sent responses.
        self._started: dict[int, float] = {}
        #: The jobs that exceeded the execution timeout, for which the worker is being killed.
        self._late: list[Job] = []
        #: The requests that have no outcome yet, by request number.
        self._open: dict[int, _Open] = {}
        #: The number of responses that each request has had since credit was last granted to it, by request
        #: number.
        self._owed: dict[int, int] = {}
        self._watch: asyncio.TimerHandle | None = None
        #: Set once a seat that is being retired has no batches and no open requests left.
        self._at_rest: asyncio.Event | None = None

    @property
    def free(self) -> bool:
        return self.usable and len(self._jobs) < self._pool.loaded.concurrency

    async def start(self) -> WorkerLoaded:
        """Starts a worker for this seat. Raises Internal with the reason if the worker cannot load the
        model.
        """
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
        """Gives the worker no more batches, and stops the worker once it has responded to the batches that it
        has already received.
        """
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
        """Sends a job's requests to the worker. Fails the job if its inputs do not fit into the shared
        memory.
        """
        process = self.process
        assert process is not None, "it is free"
        tickets = job.tickets
        numbers = self._pool.next_numbers(len(tickets))
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
        notes = [_note(ticket) for ticket in tickets] if _say_something(tickets) else []
        self._jobs[batch] = job
        self._open.update(zip(numbers, zip(repeat(job), job.positions, tickets, strict=False), strict=True))
        if block >= 0:
            self._blocks[batch] = block
        self._started[batch] = monotonic()
        if self._watch is None:
            self._watch = self._pool.loop.call_later(self._pool.execution_timeout, self._look_at_time)
        job.run.batch.on_abandon = lambda: process.cancel(numbers)
        if self._pool.loaded.decoupled:  # other models send one response, for which they need no credit
            for number, ticket in zip(numbers, tickets, strict=True):
                if ticket.flow is not None:
                    ticket.flow.on_resume = lambda number=number: self._resumed(number)
        try:
            process.execute(Execute(batch, parts, notes, block), payload)
        except (OverflowError, TypeError, UnicodeEncodeError) as error:
            # The requests contain a value that cannot be encoded. A program that embeds the server may pass
            # such values, because no dialect has validated them.
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
        if not 0 < result.batch <= self._batches:
            raise WorkerProtocolError(f"a RESULT of batch {result.batch}, which was never sent")
        block: np.ndarray | None = None
        if result.block >= 0:
            end = max(
                (column.at + column.size for part in result.parts for column in part.columns),
                default=result.block,
            )
            block = process.arena.read(result.block, end - result.block)
            # The block is returned to the worker when the last view of it is freed. If the responses use a
            # copy instead, that happens immediately.
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
            # The worker gets its next batch before the responses below are delivered, so that it is not idle.
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
        load, loaded = self._pool.command.load, self._pool.loaded
        for number in result.rescheduled:
            self._settle(number, Rescheduled(load.name, load.version, "", []))
        if result.done and job is not None and job.open and not (loaded.deferred or loaded.decoupled):
            # These requests would otherwise wait forever: the execution timeout no longer applies to them.
            raise WorkerProtocolError(f"a batch that ended without responses to {len(job.open)} requests")
        # A deferred model takes the next batch before it has responded to all requests of this one, unless
        # too many requests lack their last response.
        owes = result.done and job is not None and job.open and loaded.deferred
        if job is not None and owes and len(self._open) < _OPEN_REQUESTS:
            job.run.vacate()
        self._look_at_rest()

    def _part(self, part: Part, tensors: dict[str, Tensor]) -> None:
        load, decoupled, opened, rows = (
            self._pool.command.load,
            self._pool.loaded.decoupled,
            self._open,
            part.rows,
        )
        name, version, parameters = load.name, load.version, part.parameters
        whole = list(tensors.values())
        if rows or len(part.numbers) != 1:
            total = sum(rows)
            if len(rows) != len(part.numbers) or min(rows, default=0) < 0:
                raise WorkerProtocolError(
                    f"a part with {len(rows)} row counts for {len(part.numbers)} requests"
                )
            for tensor in whole:
                if not tensor.shape or tensor.shape[0] != total:
                    raise WorkerProtocolError(
                        f"an output '{tensor.name}' of shape {list(tensor.shape)} for {total} rows"
                    )
        # Requests are settled together, for speed.
        answered: list[int] = []
        settled: defaultdict[Job, dict[int, InferResponse]] = defaultdict(dict)
        end = 0
        for index, number in enumerate(part.numbers):
            start = end
            if rows:
                end += rows[index]
            found = opened.get(number)
            if found is None:  # the last response has been sent, or the worker made up the number
                continue
            ticket = found[2]
            request = ticket.request
            wanted = request.outputs
            outputs = []
            for tensor in whole:
                if wanted is None or tensor.name in wanted:
                    data = tensor.data[start:end] if rows else tensor.data
                    outputs.append(Tensor(tensor.name, tensor.datatype, data.shape, data))
            response = InferResponse(name, version, request.id, outputs, dict(parameters) or None)
            if part.more:
                self._respond(number, found, response)
            elif decoupled or self._owed:
                if decoupled and ticket.cancelled:
                    self._end(number)
                else:
                    self._settle(number, response)
            else:
                settled[found[0]][found[1]] = response
                answered.append(number)
        for number in answered:
            opened.pop(number, None)
        for job, responses in settled.items():
            job.settle_all(responses)

    def _respond(self, number: int, found: _Open, response: InferResponse) -> None:
        """Delivers one response of a decoupled model.

        Grants new credit, unless the client does not keep up with the responses. Credit is granted half a
        window at a time, because each grant wakes a thread of the worker.
        """
        job, position, ticket = found
        owed = self._owed[number] = self._owed.get(number, 0) + 1
        if owed > WINDOW:
            raise WorkerProtocolError(f"more than {WINDOW} responses to a request without credit")
        job.run.respond(position, response)
        if owed >= WINDOW // 2 and (ticket.flow is None or not ticket.flow.paused):
            self._resumed(number)

    def _failure(self, failure: RequestFailure) -> None:
        error = failure_of(failure)
        if type(error) is Internal:
            error = Internal(f"{self._pool.label} failed: {failure.message}")
        self._settle(failure.number, error)

    def _end(self, number: int) -> None:
        """Ends a request that gets no further response."""
        found = self._open.get(number)
        cancelled = found is not None and found[2].cancelled
        self._settle(number, Cancelled("the request was cancelled") if cancelled else None)

    def _settle(self, number: int, outcome: InferResponse | BacklineError | None) -> None:
        found = self._open.pop(number, None)
        if self._owed:
            self._owed.pop(number, None)
        if found is not None:
            job, position, _ = found
            job.settle(position, outcome)

    def _resumed(self, number: int) -> None:
        """Grants as much credit as the request has used since the last grant."""
        owed = self._owed.pop(number, 0)
        if owed and self.process is not None and number in self._open:
            self.process.credit(number, owed)

    def _open_requests(self, numbers: Sequence[int]) -> list[Ticket]:
        """Returns the open requests with these numbers. Ignores unknown numbers, because workers are not
        trusted.
        """
        return [self._open[one][2] for one in numbers if one in self._open]

    # handling hangs and crashes

    def _look_at_time(self) -> None:
        """Kills the worker if any of its batches has exceeded the execution timeout. Otherwise sets the timer
        to when the oldest batch would exceed it.
        """
        watch, self._watch = self._watch, None
        limit = self._pool.execution_timeout
        if not self._started or self.process is None:
            return
        now = monotonic()
        # If the server was suspended, results may be waiting in the socket, so the time limit starts again.
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
        jobs = list(dict.fromkeys(job for job, _, _ in self._open.values()))
        hung, self._late = self._late, []
        for state in (self._jobs, self._blocks, self._started, self._open, self._owed):
            state.clear()
        if was_usable:
            self._pool.ended(self, reason, proved=process.proved)
        self._pool.retry(jobs, reason, hung)
        self._look_at_rest()


def _say_something(tickets: Sequence[Ticket]) -> bool:
    """Returns whether the note of any of these requests differs from the default."""
    for ticket in tickets:  # `any` with a generator takes twice as long
        request = ticket.request
        if (
            request.id
            or request.parameters
            or request.outputs is not None
            or request.sequence is not None
            or request.timeout
            or ticket.trace is not None
        ):
            return True
    return False


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
