"""Runs a model in the server's process: gathers the inputs of a batch, calls the model and splits its
outputs. All runs on threads share a budget of cores, so that busy models do not oversubscribe them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic_ns

import numpy as np

from backline.backends.backend import Cancellable, LoadedModel, Run
from backline.engine.ticket import Ticket
from backline.system.cores import seconds_without_core
from backline.workers.batch import Batch
from backline.workers.joiner import Joiner
from backline.workers.stacking import split, stack, wanted_outputs
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Cancelled, Internal
from backline_client.values.messages import InferResponse
from backline_client.values.tensor import Tensor

log = logging.getLogger("backline.workers")

#: Seconds after which a waiting run starts even if no core is free, because the operating system shares cores
#: between long runs better than a queue does.
PATIENCE = 0.02
#: Seconds for which runs are not spread after two runs overlapped, because the next runs will probably
#: overlap too.
AFTER_OVERLAP = 0.2
#: Each spread run that another run overlaps doubles the time of AFTER_OVERLAP, up to this many seconds,
#: because several callers that pause between their requests look like a single caller.
LONGEST_AFTER_OVERLAP = 3.2
#: Once this many seconds have passed since the end of such a time, the next overlap starts with AFTER_OVERLAP
#: again, so that a single caller who comes after several others does not wait for spread runs for seconds.
FORGET_OVERLAP = 1.0
#: Seconds for which runs are not spread after a spread run had to wait for a core, because something outside
#: the budget uses the cores: the event loop, a worker process or another program. Such disturbances are
#: usually short, and one disturbed run in this time costs little if they last.
AFTER_CONTENTION = 0.2
#: A spread run had to wait for a core if its thread waited for more than this share of the run's duration.
_CONTENTION = 0.1


class _NotABatch(Internal):
    """Raised when an output of a model does not have a row for each item, although the model's configuration
    sets max_batch_size.

    The requests of such a batch are not retried one by one, because that would hide that the configuration is
    wrong.
    """


class Execution:
    """Executes the batches of one model version. Thread-safe.

    `joiner` joins and splits requests; without a joiner, requests are concatenated along the first dimension.
    `outputs` are returned for requests that name none; the default is all outputs of the model.
    `declared_batch` is the `max_batch_size` of the configuration, or 0 if the configuration has none.
    `idempotent` says whether a request may run twice.
    """

    def __init__(
        self,
        name: str,
        version: str,
        model: LoadedModel,
        *,
        joiner: Joiner | None = None,
        outputs: tuple[str, ...] | None = None,
        declared_batch: int = 0,
        idempotent: bool = True,
    ) -> None:
        self._idempotent = idempotent
        self._declared_batch = declared_batch
        self._name = name
        self._version = version
        self._run_model = model.run
        # isinstance cannot be used, because a stage forwards the attributes of the model that it wraps.
        self._cancellable: Cancellable | None = getattr(model, "cancellable", None)
        self._joiner = joiner
        self._outputs = tuple(spec.name for spec in model.signature.outputs) if outputs is None else outputs
        self._datatypes = {
            spec.name: (spec.datatype, spec.datatype.dtype) for spec in model.signature.outputs
        }

    def __call__(self, batch: Batch) -> None:
        """Runs a batch and records its outcomes. Never raises.

        If a batch of several requests fails, each request is run again separately, so that only invalid
        requests fail (exceptions: _NotABatch, and models that are not idempotent). An abandoned batch is not
        started or, if it is already running and the runtime can interrupt runs, is interrupted.
        """
        tickets = batch.tickets
        try:
            if not batch.abandoned:
                batch.outcomes = self._run(batch, tickets)
        except _NotABatch as error:
            batch.outcomes = [error] * len(tickets)
        except Exception as error:
            if len(tickets) == 1 and not batch.abandoned:
                batch.outcomes = [outcome_of(self._name, self._version, error)]
            elif batch.executed and not self._idempotent and not batch.abandoned:
                failure = outcome_of(self._name, self._version, error)
                batch.outcomes = [failed_together(failure, len(tickets))] * len(tickets)
        if not batch.outcomes and batch.abandoned:
            batch.outcomes = [Cancelled(f"the request to model '{self._name}' was cancelled")] * len(tickets)
        elif not batch.outcomes:
            # The requests run outside the except clause. Errors raised inside it would be chained to the
            # first error, whose traceback keeps the batch's tensors alive.
            batch.parts = [self._run_alone(ticket, batch) for ticket in tickets]
            batch.outcomes = [part.outcomes[0] for part in batch.parts]
        batch.ended_ns = monotonic_ns()

    def _run_alone(self, ticket: Ticket, whole: Batch) -> Batch:
        part = Batch([ticket], ticket.batch_size, monotonic_ns(), off_loop=whole.off_loop)
        whole.on_abandon = part.abandon
        if whole.abandoned:
            part.abandoned = True
        self(part)
        return part

    def _run(self, batch: Batch, tickets: Sequence[Ticket]) -> list[InferResponse | BacklineError | None]:
        first = tickets[0]
        alone = len(tickets) == 1
        joiner = self._joiner
        if joiner is not None:
            given = [
                {name: tensor.data for name, tensor in ticket.request.inputs.items()} for ticket in tickets
            ]
            rows = [ticket.batch_size for ticket in tickets]
            inputs = joiner.join(given, rows)
        elif alone:
            inputs = {name: tensor.data for name, tensor in first.request.inputs.items()}
        else:
            inputs = stack(tickets)
        names = wanted_outputs(tickets, self._outputs)
        batch.gathered_ns = batch.ran_ns = monotonic_ns()
        batch.executed = True
        arrays = self._run_of(batch)(inputs, names)
        batch.ran_ns = monotonic_ns()
        if joiner is not None:
            outputs = joiner.split(given, rows, names, arrays)
            return [self._response(ticket, names, own) for ticket, own in zip(tickets, outputs, strict=True)]
        if self._declared_batch:
            self._check_rows(names, arrays, sum(ticket.batch_size for ticket in tickets))
        if alone:
            return [
                InferResponse(
                    self._name,
                    self._version,
                    first.request.id,
                    [self._tensor(n, a) for n, a in zip(names, arrays, strict=True)],
                )
            ]
        whole = [self._tensor(name, array) for name, array in zip(names, arrays, strict=True)]
        return [*split(tickets, whole, self._name, self._version)]

    def _run_of(self, batch: Batch) -> Run:
        if self._cancellable is None or not batch.off_loop:
            return self._run_model
        run, batch.on_abandon = self._cancellable()
        if batch.abandoned:
            batch.on_abandon()
        return run

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        datatype, dtype = self._datatypes[name]
        if array.dtype != dtype:  # the model's file declares a datatype that the model does not return
            datatype = DataType.from_dtype(array.dtype)
        return Tensor(name, datatype, array.shape, array)

    def _check_rows(self, names: tuple[str, ...], arrays: list[np.ndarray], items: int) -> None:
        for name, array in zip(names, arrays, strict=True):
            if array.ndim == 0 or array.shape[0] != items:
                raise _NotABatch(
                    f"output '{name}' of model '{self._name}' has shape {list(array.shape)} for a batch of"
                    f" {items}, so its first dimension is not the batch dimension, although the model's"
                    f" configuration sets max_batch_size to {self._declared_batch}: set it to 0"
                )

    def _response(self, ticket: Ticket, names: tuple[str, ...], arrays: list[np.ndarray]) -> InferResponse:
        wanted = ticket.request.outputs
        pairs = zip(names, arrays, strict=True)
        tensors = [self._tensor(name, array) for name, array in pairs if wanted is None or name in wanted]
        return InferResponse(self._name, self._version, ticket.request.id, tensors)


def outcome_of(model: str, version: str, error: Exception) -> BacklineError:
    """Returns the outcome of a request whose run raised `error`. Logs errors other than BacklineError."""
    if isinstance(error, BacklineError):
        return error
    log.error("model '%s' version %s failed", model, version, exc_info=error)
    return Internal(f"model '{model}' version {version} failed: {type(error).__name__}: {error}")


def failed_together(failure: BacklineError, requests: int) -> BacklineError:
    """Returns the outcome of each request in a failed batch of a model that is not idempotent."""
    return Internal(
        f"{failure.message} (in a batch of {requests} requests, which are not retried one by one, because the"
        " model is not idempotent)"
    )


class _WaitingRun:
    """A run that waits for cores of the budget."""

    __slots__ = ("cores", "granted")

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.granted = threading.Lock()
        self.granted.acquire()


class CoreBudget:
    """Limits how many cores runs use at the same time. Runs get cores in the order in which they ask for
    them. The methods are called on the threads of the runs.

    A run that has waited for PATIENCE seconds starts anyway, so that a model with long runs does not block
    other models.

    While only one run is in progress, the budget allows it to be spread over several cores. A spread run
    takes no more of the budget than any other run, so that it never delays the start of another run.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        #: The time of time.monotonic_ns() before which no run is spread.
        self._spread_from = 0
        self._after_overlap = AFTER_OVERLAP
        self._lock = threading.Lock()
        self._waiting: deque[_WaitingRun] = deque()

    def take(self, cores: int) -> bool:
        """Takes `cores` cores once they are free, or after PATIENCE seconds in any case. Returns whether the
        caller had to wait.
        """
        with self._lock:
            self._note_overlap()
            if self._free >= cores and not self._waiting:
                self._free -= cores
                return False
            waiting = _WaitingRun(cores)
            self._waiting.append(waiting)
        if not waiting.granted.acquire(timeout=PATIENCE):
            with self._lock:
                if waiting in self._waiting:  # `give` may have granted the cores just after the timeout
                    # The run starts without free cores, so `_free` may become negative.
                    self._waiting.remove(waiting)
                    self._free -= cores
        return True

    def give(self, cores: int) -> None:
        """Returns cores that the caller has taken from the budget."""
        with self._lock:
            self._free += cores
            self._note_overlap()
            waiting = self._waiting
            while waiting and self._free >= waiting[0].cores:
                self._free -= waiting[0].cores
                waiting.popleft().granted.release()

    def _note_overlap(self) -> None:
        if self._free < self.cores:
            if monotonic_ns() - self._spread_from > FORGET_OVERLAP * 1e9:
                self._after_overlap = AFTER_OVERLAP
            self.keep_narrow(self._after_overlap)

    def keep_narrow(self, seconds: float) -> None:
        """Prevents runs from being spread for the next `seconds` seconds."""
        self._spread_from = max(self._spread_from, monotonic_ns() + int(seconds * 1e9))

    def spread_ended(self) -> None:
        """Records the end of a spread run. If another run overlapped it, doubles the time without spread
        runs, up to LONGEST_AFTER_OVERLAP; otherwise, resets this time to AFTER_OVERLAP.
        """
        if monotonic_ns() < self._spread_from:
            self._after_overlap = min(2 * self._after_overlap, LONGEST_AFTER_OVERLAP)
            self.keep_narrow(self._after_overlap)
        else:
            self._after_overlap = AFTER_OVERLAP

    def may_spread(self, cores: int) -> bool:
        """Returns whether a run that has just taken `cores` cores is the only one in progress, and no runs
        have overlapped recently.
        """
        # The values are read without the lock: if another thread changes them at this moment, the worst
        # outcome is one run that is slower than necessary.
        return self._free == self.cores - cores and monotonic_ns() >= self._spread_from


class BudgetedExecution:
    """Executes batches within a budget of cores. A run on `threads` threads (0 for one per core) takes half
    as many cores of the budget, rounded up, because its threads are rarely all busy at the same time.
    `spread` executes batches of the same model on several cores per run; it is used while no other run is in
    progress.
    """

    def __init__(
        self,
        execute: Callable[[Batch], None],
        budget: CoreBudget,
        threads: int,
        spread: Callable[[Batch], None] | None = None,
    ) -> None:
        self._execute = execute
        self._spread = spread
        self._budget = budget
        self._cores = (min(threads or budget.cores, budget.cores) + 1) // 2
        self._held: dict[Batch, None] = {}

    def __call__(self, batch: Batch) -> None:
        """Runs a batch; see Execution. Time spent waiting for cores counts as time in the queue."""
        if self._budget.take(self._cores):
            batch.started_ns = monotonic_ns()
        self._held[batch] = None
        try:
            if self._spread is not None and self._budget.may_spread(self._cores):
                self._run_spread(self._spread, batch)
            else:
                self._execute(batch)
        finally:
            self.release(batch)

    def _run_spread(self, spread: Callable[[Batch], None], batch: Batch) -> None:
        began, without_core = monotonic_ns(), seconds_without_core()
        spread(batch)
        self._budget.spread_ended()
        if seconds_without_core() - without_core > _CONTENTION * (monotonic_ns() - began) / 1e9:
            self._budget.keep_narrow(AFTER_CONTENTION)

    def release(self, batch: Batch) -> None:
        """Frees the cores of a batch that ended or whose thread was abandoned. Thread-safe, idempotent."""
        # dict.pop is atomic, so only one of several callers gives the cores back.
        if self._held.pop(batch, batch) is None:
            self._budget.give(self._cores)
