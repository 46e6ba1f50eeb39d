"""The workers of one model version. The pool gives them batches, and replaces workers that end."""

from __future__ import annotations

import asyncio
import logging
from bisect import insort
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from time import monotonic_ns
from typing import ClassVar, TypeVar

import numpy as np
from msgspec import structs

from backline.engine.config.instance_group import MAX_INSTANCES, InstanceGroup
from backline.engine.device import Place, Places
from backline.engine.statistics import ResponseStatistics
from backline.engine.ticket import Ticket
from backline.workers.batch import Batch
from backline.workers.channel.calls import Calls
from backline.workers.channel.protocol import WorkerLoaded
from backline.workers.instance import Finished
from backline.workers.model_in_workers import ModelInWorkers
from backline.workers.process.job import BatchRun, Job
from backline.workers.process.process import WorkerCommand, WorkerProcess
from backline.workers.process.seat import Seat
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor

Value = TypeVar("Value")
_ANY_GROUP = InstanceGroup(0)
log = logging.getLogger("backline.workers")

#: The pause, in seconds, before a restart of a worker that ended before it had sent a RESULT. The pause
#: doubles with each such worker, up to _LONGEST_PAUSE.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 10.0
#: A model counts as not ready after this many seconds without any running worker, or once a restart has
#: failed. Until then, requests wait.
_GRACE = 2.0
#: The time limit of a batch, in seconds, if neither the configuration nor the model's code sets one. There is
#: a default so that a worker that hangs is always replaced.
EXECUTION_TIMEOUT = 300.0
#: The maximum number of batches that a worker may take at the same time.
_MOST_CONCURRENT = 4096
#: The limits of the fields of configurations and of the metadata: max_batch_size is an int32, and the
#: dimensions are int64.
_LARGEST_BATCH = 2**31 - 1
_LARGEST_DIMENSION = 2**63 - 1
#: The maximum queue delay that a model may set, in microseconds: a day.
_LONGEST_DELAY_US = 24 * 60 * 60 * 1_000_000
#: The maximum number of threads of one run.
_MOST_THREADS = 1024
#: The maximum number of requests to a decoupled model that may be in flight in one worker at the same time.
_OPEN_STREAMS = 128


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The settings of a pool. Where a value is None, the setting in the model's code applies or, if there is
    none, the default.

    `execution_timeout` is in seconds. Requests whose worker ends are retried once, unless `idempotent` is
    False; requests that do not finish in time are retried only if `idempotent` is True. With `remembers`,
    requests belong to sequences, and the state of a sequence exists only in the worker that started the
    sequence, so no request is retried.
    """

    execution_timeout: float | None = None
    idempotent: bool | None = None
    remembers: bool = False
    #: WorkerProcess, or DebuggedWorker to run the model in the server's process.
    worker: type[WorkerProcess] = WorkerProcess


class ProcessInstance:
    """An instance that runs one batch at a time, in the current worker of its seat if there is one; see
    `WorkerPool.place`.
    """

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
        """Lets a worker that has left the pool end; `WorkerPool.close` ends the others."""
        self._pool.given_back(self._seat)


class WorkerPool(ModelInWorkers):
    """The worker processes of one model version."""

    def __init__(
        self,
        command: WorkerCommand,
        options: PoolOptions,
        loop: asyncio.AbstractEventLoop,
        placed: Places,
        calls: Calls | None = None,
        poll: BusyPoll | None = None,
    ) -> None:
        """`calls` serves the model's calls of other models. If it is None, such calls fail. `poll` is the
        event loop's busy poll.
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
        #: Whether a request may run twice, as the configuration or else the model's code declares; None if
        #: neither does.
        self.idempotent: bool | None = None
        self.warnings = ()
        self.responses = None
        self.loop = self._loop = loop
        self.poll = poll or BusyPoll()
        #: Whether requests that run together may differ in shape. If so, each request is sent as a separate
        #: part.
        self.apart = command.load.joining is not None
        self._seats: list[Seat] = []
        #: The seats that are being retired (see `Seat.retire`), each with the task that does so.
        self._retiring: dict[Seat, asyncio.Task[None]] = {}
        #: The number of open instances of each seat, if the workers remember sequences.
        self._lent: Counter[Seat] = Counter()
        #: The seats that have left the pool, but whose workers still have open sequences.
        self._leaving: set[Seat] = set()
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
        return not self.debugged

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
        """Starts the workers. If their number is configured, all start together; otherwise the first worker
        starts alone and determines how many are needed.

        If a worker cannot be started, stops the other workers, and raises Internal with the reason. Raises
        InvalidArgument for a number that cannot be used (see `_check`).
        """
        counted = self.placed.counted and not self.command.load.complete
        if counted:
            self.places = self.placed.spread()
        self._seats += [Seat(self, place) for place in self.places]
        try:
            self.loaded, *_ = await asyncio.gather(*(seat.start() for seat in self._seats))
            if self.loaded.completed:
                return
            self._check(self.loaded)
            self._take_signature(self.loaded)
            if not counted:
                self.places = self.placed.spread(self.loaded.instances)
                self._seats += [Seat(self, place) for place in self.places[1:]]
                await asyncio.gather(*(seat.start() for seat in self._seats[1:]))
        except BaseException:
            await self.stop()
            raise

    def _check(self, loaded: WorkerLoaded) -> None:
        """Raises InvalidArgument if a number in the model's code or archive cannot be used, or is so large
        that it would exhaust the memory: the server creates an object for each batch that may run at the same
        time, and a process for each instance.
        """
        sizes = [size for spec in (*loaded.inputs, *loaded.outputs) for size in spec.shape]
        timeout = loaded.execution_timeout_seconds
        for what, number, valid in (
            ("maximum batch size", loaded.max_batch_size, 0 <= loaded.max_batch_size <= _LARGEST_BATCH),
            ("smallest dimension", min(sizes, default=0), min(sizes, default=0) >= -1),
            ("largest dimension", max(sizes, default=0), max(sizes, default=0) <= _LARGEST_DIMENSION),
            ("execution timeout", timeout, timeout is None or timeout > 0),  # false for NaN too
            (
                "queue delay",
                loaded.max_queue_delay_us,
                0 <= (loaded.max_queue_delay_us or 0) <= _LONGEST_DELAY_US,
            ),
            (
                "number of threads per run",
                loaded.threads_per_run,
                0 <= loaded.threads_per_run <= _MOST_THREADS,
            ),
        ):
            if not valid:
                raise InvalidArgument(f"{self.label} has the {what} {number}, which is out of range")
        for what, asked, most in (
            ("instances", loaded.instances, MAX_INSTANCES),
            ("concurrent batches", loaded.concurrency, _MOST_CONCURRENT),
        ):
            if asked is not None and not 0 < asked <= most:
                raise InvalidArgument(f"{self.label} asks for {asked} {what}, expected 1 to {most}")

    def _take_signature(self, loaded: WorkerLoaded) -> None:
        batch = (-1,) if loaded.max_batch_size else ()
        inputs, outputs = (
            tuple(
                TensorSpec(
                    spec.name,
                    DataType.from_name(spec.datatype),
                    (*batch, *spec.shape),
                    spec.optional,
                    tuple(spec.labels),
                    json=spec.json,
                    media=spec.media,
                    column=spec.column,
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
        # The list alternates between seats. The scheduler takes from one end of the free instances, so this
        # order spreads batches over all workers.
        seats = self._seats * each
        if self.options.remembers:
            self._lent.update(seats)
        return [ProcessInstance(self, seat) for seat in seats]

    def given_back(self, seat: Seat) -> None:
        """Called when an instance of a seat is closed. Retires a seat that has left the pool once all its
        instances are closed: until then, sequences need the states that its worker remembers.
        """
        if not self._lent[seat]:
            return
        self._lent[seat] -= 1
        if not self._lent[seat]:
            del self._lent[seat]
            if seat in self._leaving:
                self._leaving.discard(seat)
                self._begin_retiring(seat)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._running()]

    def _running(self) -> list[WorkerProcess]:
        return [seat.process for seat in self._seats if seat.process is not None and seat.process.alive]

    async def resize(self, placed: Places, places: tuple[Place, ...]) -> None:
        """Starts and stops workers until there is one for each of `places`. New workers start before workers
        without a place are stopped. A worker that remembers sequences is stopped once all its instances are
        closed.

        Changes nothing and raises Internal if a worker cannot be started, or Unavailable if the pool is
        closing.
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
                if self._lent[seat]:
                    self._leaving.add(seat)
                else:
                    self._begin_retiring(seat)
            for seat in added:
                self.has_room(seat)

    def _begin_retiring(self, seat: Seat) -> None:
        if not self._closing:
            self._retiring[seat] = self._loop.create_task(self._retire(seat))

    async def _retire(self, seat: Seat) -> None:
        try:
            await seat.retire()
        finally:
            del self._retiring[seat]

    def command_for(self, place: Place) -> WorkerCommand:
        """Returns the command that starts a worker at `place`."""
        load = structs.replace(
            self.command.load,
            instance=place.name,
            device_kind=place.device.kind,
            device_index=place.device.index,
        )
        return replace(self.command, load=load)

    # placing batches

    def place(self, run: BatchRun, seat: Seat) -> None:
        """Sends a batch to the worker of its seat or, if that seat has no worker now, to any other free
        worker that may run the batch. Otherwise, the batch waits or, if the model is unavailable, fails.
        """
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

    def next_numbers(self, count: int) -> list[int]:
        """Returns new request numbers, unique in this pool."""
        return list(islice(self._numbers, count))

    def has_room(self, seat: Seat) -> None:
        """Sends waiting jobs to the worker of a seat. Called when that worker can take another batch."""
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
        """Retries the requests of jobs whose worker has ended, unless a rule in Job.once_more forbids it.
        Each request runs separately, so that a request that crashes the worker again does not make other
        requests fail. Requests of `hung` jobs, which exceeded the execution timeout, are retried only if the
        model is declared idempotent.
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
        """Handles a job that cannot be encoded: sends the job's requests one by one or, if the job has only
        one request, fails that request.
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
        """Restarts the worker of a seat, because it has ended unexpectedly. `proved` means that the worker
        had sent a RESULT.
        """
        if self._closing:
            return
        log.error("%s: its worker process %s, and is being restarted", self.label, reason)
        seat.failures = 0 if proved else seat.failures + 1
        self.look_at_readiness()
        self._start_again(seat, reason)

    def look_at_readiness(self) -> None:
        """Updates the readiness of the model, and reports it to `on_ready`: the model is ready unless one of
        its workers has reported that it is not.
        """
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
            self._waiting.remove(job)  # only this seat's worker could run the job, but it may never start
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
        """Kills the workers immediately and fails their jobs, because the load of the model was cancelled."""
        self._closing = True
        for process in self._running():
            process.kill("was no longer needed")

    async def stop(self) -> None:
        """Makes the workers unload the model and exit, and waits until they have. Refuses the jobs that still
        wait for a worker.
        """
        self._closing = True
        if self._alone is not None:
            self._alone.cancel()
        for job in self._waiting:
            job.fail(Unavailable(f"{self.label} is being unloaded", retry_after=1))
        self._waiting.clear()
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*(seat.stop() for seat in (*self._seats, *self._retiring, *self._leaving)))


def _without_group(place: Place) -> Place:
    """Returns the part of a place on which a worker depends: the device and the name of the group. The
    group's other settings are for the scheduler, so a change to them needs no new worker.
    """
    return structs.replace(place, group=_ANY_GROUP)


def _first(configured: Value | None, declared: Value | None, default: Value) -> Value:
    """Returns the first value that is set: the configuration's, the model's, or the default."""
    if configured is not None:
        return configured
    return declared if declared is not None else default
