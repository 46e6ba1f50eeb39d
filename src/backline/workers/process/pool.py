"""The workers of one model version. The pool gives them batches, and replaces workers that end."""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from time import monotonic_ns
from typing import ClassVar, TypeVar

import msgspec
import numpy as np

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.datatypes import DataType
from backline.engine.values.device import Place, Places
from backline.engine.values.messages import InferRequest, InferResponse
from backline.engine.values.signature import Signature, TensorSpec
from backline.engine.values.tensor import Tensor
from backline.system.busy_poll import BusyPoll
from backline.workers.batch import Batch
from backline.workers.channel.calls import Calls
from backline.workers.channel.protocol import WorkerLoaded
from backline.workers.instance import Finished
from backline.workers.model_in_workers import ModelInWorkers
from backline.workers.process.job import BatchRun, Job
from backline.workers.process.process import WorkerCommand, WorkerProcess
from backline.workers.process.seat import Seat

Value = TypeVar("Value")
_ANY_GROUP = InstanceGroup(0)
log = logging.getLogger("backline.workers")

#: Seconds before a worker that ended without any RESULT is restarted: the first pause and the maximum one.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
#: Seconds without any worker after which a model counts as not ready. Until then, requests wait.
_GRACE = 2.0
#: Seconds that a batch may take by default, so that a worker that hangs forever is replaced eventually.
EXECUTION_TIMEOUT = 300.0
#: The maximum number of requests to a decoupled model that may be open at once in one worker.
_OPEN_STREAMS = 128


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How to run workers. None means the model's own setting or, without one, the default.

    `execution_timeout` is in seconds. Requests whose worker ends are retried unless `idempotent` is False;
    requests that do not finish in time are retried only if it is True. With `remembers`, requests belong to
    sequences whose state exists only in the worker that started them.
    """

    execution_timeout: float | None = None
    idempotent: bool | None = None
    remembers: bool = False
    #: WorkerProcess, or DebuggedWorker to run the model in the server's process.
    worker: type[WorkerProcess] = WorkerProcess


class ProcessInstance:
    """A slot for one batch at a time on the worker of a seat, or on the worker that replaces it there."""

    off_loop: ClassVar[bool] = True

    def __init__(self, pool: WorkerPool, seat: Seat) -> None:
        self._pool = pool
        self._seat = seat

    def run(self, batch: Batch, finished: Finished) -> None:
        self._pool.place(BatchRun(batch, self, finished, self._pool.responses), self._seat)

    @property
    def memory(self) -> object:
        return self._seat.memory

    def close(self) -> None:
        """Does nothing: `WorkerPool.close` ends the workers."""


class WorkerPool(ModelInWorkers):
    """Workers that all run the same model version."""

    def __init__(
        self,
        command: WorkerCommand,
        options: PoolOptions,
        loop: asyncio.AbstractEventLoop,
        placed: Places,
        calls: Calls | None = None,
        poll: BusyPoll | None = None,
    ) -> None:
        """`calls` serves the model's calls of other models; without it, such calls fail. `poll` is the event
        loop's busy poll.
        """
        self.calls = calls
        self.placed = placed
        self.places: tuple[Place, ...] = placed.spread()[:1]
        self.command = command
        self.options = options
        self.on_available = lambda _: None
        self.on_ready = lambda _: None
        self.unready = ""
        self.signature = Signature((), ())
        self.execution_timeout = EXECUTION_TIMEOUT
        #: Whether the model declares that a request may run twice, or None if it does not say.
        self.idempotent: bool | None = None
        self.warnings = ()
        self.responses = None
        self.loop = self._loop = loop
        self.poll = poll or BusyPoll()
        #: Whether requests that run together may differ in shape, so that each needs a separate part.
        self.apart = command.load.joining is not None
        self._seats: list[Seat] = []
        #: The seats that are finishing their last batches, each with the task that waits for it.
        self._retiring: dict[Seat, asyncio.Task[None]] = {}
        self._resizing = asyncio.Lock()
        #: The jobs for which no worker was free, ordered by `Job.turn`.
        self._waiting: deque[Job] = deque()
        self._numbers = count(1)
        self._closing = False
        self._unavailable = ""
        self._alone: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def debugged(self) -> bool:
        return self.options.worker.debugged

    @property
    def resizable(self) -> bool:
        return not self.debugged and not self.options.remembers

    @property
    def where(self) -> str:
        if self.debugged:
            return "in the server's process, to be debugged"
        folder = self.command.environment.get("VIRTUAL_ENV")
        count = len(self.pids)
        environment = f" of the environment '{folder}'" if folder else ""
        return f"in {count} worker process{'es' if count > 1 else ''}{environment}"

    @property
    def label(self) -> str:
        """The model and version, for messages."""
        return self.command.label

    # starting

    async def start(self) -> None:
        """Starts the workers. If their number is configured, all start at once; otherwise the first worker
        starts alone and determines how many are needed.

        Raises Internal with the reason, after stopping the other workers, if a worker cannot be started.
        """
        counted = self.placed.counted and not self.command.load.complete
        if counted:
            self.places = self.placed.spread()
        self._seats += [Seat(self, place) for place in self.places]
        try:
            self.loaded, *_ = await asyncio.gather(*(seat.start() for seat in self._seats))
            if self.loaded.completed:
                return
            self._take_signature(self.loaded)
            if not counted:
                self.places = self.placed.spread(self.loaded.instances)
                self._seats += [Seat(self, place) for place in self.places[1:]]
                await asyncio.gather(*(seat.start() for seat in self._seats[1:]))
        except BaseException:
            await self.stop()
            raise

    def _take_signature(self, loaded: WorkerLoaded) -> None:
        batch = (-1,) if loaded.max_batch_size else ()
        inputs, outputs = (
            tuple(
                TensorSpec(
                    spec.name,
                    DataType.from_name(spec.datatype),
                    (*batch, *spec.shape),
                    spec.optional,
                    json=spec.json,
                    media=spec.media,
                )
                for spec in specs
            )
            for specs in (loaded.inputs, loaded.outputs)
        )
        self.signature = Signature(inputs, outputs)
        self.warnings = tuple(loaded.warnings)
        if loaded.decoupled:
            self.responses = ResponseStatistics()
        options = self.options
        self.execution_timeout = _first(
            options.execution_timeout, loaded.execution_timeout_seconds, EXECUTION_TIMEOUT
        )
        self.idempotent = loaded.idempotent if options.idempotent is None else options.idempotent

    def instances(self) -> list[ProcessInstance]:
        each = (
            _OPEN_STREAMS if self.loaded.decoupled and not self.loaded.deferred else self.loaded.concurrency
        )
        # The scheduler uses the instance that became free last, so alternating between seats spreads the
        # load.
        return [ProcessInstance(self, seat) for _ in range(each) for seat in self._seats]

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._running()]

    def _running(self) -> list[WorkerProcess]:
        return [seat.process for seat in self._seats if seat.process is not None and seat.process.alive]

    async def resize(self, placed: Places, places: tuple[Place, ...]) -> None:
        """Changes the workers to those of `places`. New workers start before those without a place finish.

        Raises Internal, and changes nothing, if a worker cannot be started. Not for pools that `remember`.
        """
        async with self._resizing:
            spare: dict[Place, list[Seat]] = {}
            for place, seat in zip(self.places, self._seats, strict=True):
                spare.setdefault(_without_group(place), []).append(seat)
            kept = [spare[key].pop(0) if spare.get(key := _without_group(one)) else None for one in places]
            seats = [seat or Seat(self, place) for seat, place in zip(kept, places, strict=True)]
            added = [seat for seat in seats if seat not in self._seats]
            try:
                await asyncio.gather(*(seat.start() for seat in added))
                if self._closing:
                    raise Unavailable(f"{self.label} is being unloaded", retry_after=1)
            except BaseException:
                await asyncio.gather(*(seat.stop() for seat in added))
                raise
            leaving = [seat for seat in self._seats if seat not in seats]
            self._seats, self.places, self.placed = seats, places, placed
            for seat in leaving:
                self._retiring[seat] = self._loop.create_task(self._retire(seat))
            for seat in added:
                self.has_room(seat)

    async def _retire(self, seat: Seat) -> None:
        try:
            await seat.retire()
        finally:
            del self._retiring[seat]

    def command_for(self, place: Place) -> WorkerCommand:
        """Returns the command that starts the worker of one seat."""
        load = msgspec.structs.replace(
            self.command.load,
            instance=place.name,
            device_kind=place.device.kind,
            device_index=place.device.index,
        )
        return replace(self.command, load=load)

    # placing batches

    def place(self, run: BatchRun, seat: Seat) -> None:
        """Gives a batch to the worker of its seat, or to any free worker if that seat has none now."""
        job = Job(run, range(len(run.batch.tickets)), seat)
        if seat.free:
            seat.send(job)
            return
        if not seat.usable and (other := self._free_seat_for(job)) is not None:
            other.send(job)
        elif self._unavailable:
            job.fail(Unavailable(self._unavailable, retry_after=1))
        else:
            self._waiting.append(job)

    def next_number(self) -> int:
        """Returns a new request number, unique in this pool."""
        return next(self._numbers)

    def has_room(self, seat: Seat) -> None:
        """Called when the worker of a seat can take another batch. Sends waiting jobs to the worker."""
        while (
            seat.free
            and (job := next((job for job in self._waiting if self._may_go(job, seat)), None)) is not None
        ):
            self._waiting.remove(job)
            if not job.drop_cancelled():
                seat.send(job)

    def _may_go(self, job: Job, seat: Seat) -> bool:
        return seat is job.seat or not self.options.remembers

    def _free_seat_for(self, job: Job) -> Seat | None:
        return next((seat for seat in self._seats if seat.free and self._may_go(job, seat)), None)

    def retry(self, jobs: Sequence[Job], reason: str, hung: Collection[Job] = ()) -> None:
        """Separately retries each request of jobs whose worker has ended, so that the request that crashed
        the worker cannot make others fail again. Requests of `hung` jobs, which did not finish in time, are
        retried only if the model declares itself idempotent.
        """
        for job in jobs:
            ended = f"{self.label}: its worker process {reason}"
            self._place_again(
                job.once_more(
                    ended,
                    idempotent=self.idempotent,
                    hung=job in hung,
                    remembers=self.options.remembers,
                )
            )

    def refused(self, job: Job, error: Exception) -> None:
        """Handles a job that cannot be encoded: sends its requests one by one or, if it has only one, fails
        it.
        """
        if len(job.open) > 1:
            self._place_again(job.apart())
        else:
            job.fail(
                InvalidArgument(f"the request cannot be sent to a worker process of {self.label}: {error}")
            )

    def _place_again(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if self._closing:
                job.fail(Unavailable(f"{self.label} is being unloaded", retry_after=1))
                continue
            seat = self._free_seat_for(job)
            if seat is not None:
                seat.send(job)
            else:
                insort(self._waiting, job, key=lambda waiting: waiting.turn)

    # restarting workers

    def ended(self, seat: Seat, reason: str, *, proved: bool) -> None:
        """Restarts a worker that ended unexpectedly. `proved` means that it had sent a RESULT."""
        if self._closing:
            return
        log.error("%s: its worker process %s, and is being restarted", self.label, reason)
        seat.failures = 0 if proved else seat.failures + 1
        self.look_at_readiness()
        self._start_again(seat, reason)

    def look_at_readiness(self) -> None:
        """Updates the reported readiness of the model: it is ready if all of its workers say so."""
        unready = next((process.unready for process in self._running() if process.unready), "")
        if unready == self.unready:
            return
        self.unready = unready
        if unready:
            log.warning("%s is not ready: %s", self.label, unready)
        else:
            log.info("%s is ready again", self.label)
        self.on_ready(unready)

    def _start_again(self, seat: Seat, reason: str) -> None:
        pause = min(_FIRST_PAUSE * 2 ** (seat.failures - 1), _LONGEST_PAUSE) if seat.failures else 0.0
        seat.reason = reason
        if not any(other.usable for other in self._seats) and not self._unavailable and self._alone is None:
            self._alone = self._loop.call_later(_GRACE, self._look_for_workers)
        task = self._loop.create_task(self._revive(seat, pause))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _revive(self, seat: Seat, pause: float) -> None:
        await asyncio.sleep(pause)
        if self._closing:
            return
        try:
            await seat.start()
        except BacklineError as error:
            self._not_revived(seat, error.message)
            return
        if self._alone is not None:
            self._alone.cancel()
            self._alone = None
        if self._unavailable:
            self._unavailable = ""
            self.on_available("")
        log.warning("%s: its worker process runs again", self.label)
        self.has_room(seat)

    def _not_revived(self, seat: Seat, reason: str) -> None:
        if self._closing:
            return
        seat.failures += 1
        log.error("%s", reason)
        if not any(other.usable for other in self._seats):
            self._set_unavailable(reason)
        for job in [job for job in self._waiting if job.seat is seat and self.options.remembers]:
            self._waiting.remove(job)  # only its own worker could run it, and that worker may never start
            job.fail(Unavailable(reason, retry_after=1))
        self._start_again(seat, reason)

    def _look_for_workers(self) -> None:
        self._alone = None
        if not self._closing and not any(seat.usable for seat in self._seats):
            reasons = [seat.reason for seat in self._seats if seat.reason]
            last = reasons[-1] if reasons else "ended"
            self._set_unavailable(f"{self.label} has no worker process at the moment: the last one {last}")

    def _set_unavailable(self, reason: str) -> None:
        self._unavailable = reason
        while self._waiting:
            self._waiting.popleft().fail(Unavailable(reason, retry_after=1))
        self.on_available(reason)

    # running from other threads, and stopping

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        datatypes = {spec.name: spec.datatype for spec in self.signature.inputs}
        tensors = {name: Tensor(name, datatypes[name], array.shape, array) for name, array in inputs.items()}
        answer = asyncio.run_coroutine_threadsafe(self._infer(tensors, tuple(outputs)), self._loop).result()
        arrays = {tensor.name: tensor.data for tensor in answer}
        return [arrays[name] for name in outputs if name in arrays]

    async def _infer(self, inputs: dict[str, Tensor], outputs: tuple[str, ...]) -> list[Tensor]:
        done: asyncio.Future[Batch] = self._loop.create_future()
        last: list[InferResponse] = []
        request = InferRequest(self.command.load.name, inputs, outputs=outputs)
        ticket = Ticket(request, lambda *_: None, lambda _, response: last.append(response))
        if self.loaded.max_batch_size:
            ticket.batch_size = next((tensor.shape[0] for tensor in inputs.values()), 1)
        batch = Batch([ticket], ticket.batch_size, monotonic_ns())
        self.place(BatchRun(batch, None, lambda _, ran: done.set_result(ran)), self._seats[0])
        outcome = (await done).outcomes[0]
        if isinstance(outcome, BacklineError):
            raise outcome
        response = outcome or (last[-1] if last else None)
        return [] if response is None else response.outputs

    def close(self) -> None:
        try:
            here = asyncio.get_running_loop() is self._loop
        except RuntimeError:
            here = False
        if here:
            task = self._loop.create_task(self.stop())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            asyncio.run_coroutine_threadsafe(self.stop(), self._loop).result()

    def abort(self) -> None:
        """Kills the workers at once and fails their jobs, because the load of the model was cancelled."""
        self._closing = True
        for process in self._running():
            process.kill("was no longer needed")

    async def stop(self) -> None:
        """Lets the workers unload the model and end. Refuses jobs that still wait for a worker."""
        self._closing = True
        if self._alone is not None:
            self._alone.cancel()
        for job in self._waiting:
            job.fail(Unavailable(f"{self.label} is being unloaded", retry_after=1))
        self._waiting.clear()
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*(seat.stop() for seat in (*self._seats, *self._retiring)))


def _without_group(place: Place) -> Place:
    """Returns the part of a place on which a worker depends: its device and name. The group also has settings
    of the scheduler.
    """
    return replace(place, group=_ANY_GROUP)


def _first(configured: Value | None, declared: Value | None, default: Value) -> Value:
    """Returns the first value that is set: the configuration's, the model's, or the default."""
    if configured is not None:
        return configured
    return declared if declared is not None else default
