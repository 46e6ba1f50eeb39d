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
from backline.engine.errors import BacklineError, Cancelled, Internal
from backline.engine.ticket import Ticket
from backline.engine.values.datatypes import DataType
from backline.engine.values.messages import InferResponse
from backline.engine.values.tensor import Tensor
from backline.workers.batch import Batch
from backline.workers.joiner import Joiner

log = logging.getLogger("backline.workers")

#: Seconds after which a waiting run starts even if no core is free: the operating system shares cores between
#: long runs better than a queue does.
PATIENCE = 0.02


class _NotABatch(Internal):
    """Raised when the outputs of a model do not have the batch size that its configuration declares.

    Retrying each request of the batch alone would hide that the configuration is wrong.
    """


class Execution:
    """The execution of the batches of one model version. Thread-safe.

    `joiner` joins and splits requests; without a joiner, they are concatenated along the first dimension.
    `outputs` are returned for requests that name none; the default is all outputs of the model.
    `declared_batch` is the `max_batch_size` of the configuration, or 0 if the configuration has none.
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
    ) -> None:
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

        If a batch of several requests fails, each is run again alone, so that an invalid request fails alone.
        An abandoned batch is not started, or is interrupted if the runtime can interrupt a run.
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
        if not batch.outcomes and batch.abandoned:
            batch.outcomes = [Cancelled(f"the request to model '{self._name}' was cancelled")] * len(tickets)
        elif not batch.outcomes:
            # This is outside the except clause, because errors chained to the batch's error would keep its
            # tensors alive.
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
            inputs = {
                name: np.concatenate([ticket.request.inputs[name].data for ticket in tickets])
                for name in first.request.inputs
            }
        names = self._wanted(tickets)
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
        return self._split(tickets, names, arrays)

    def _run_of(self, batch: Batch) -> Run:
        if self._cancellable is None or not batch.off_loop:
            return self._run_model
        run, batch.on_abandon = self._cancellable()
        if batch.abandoned:
            batch.on_abandon()
        return run

    def _wanted(self, tickets: Sequence[Ticket]) -> tuple[str, ...]:
        """Returns the names of the outputs to compute: all outputs that any request of the batch asks for."""
        wanted = tickets[0].request.outputs
        if wanted is None:
            return self._outputs
        if all(ticket.request.outputs == wanted for ticket in tickets):
            return wanted
        if any(ticket.request.outputs is None for ticket in tickets):
            return self._outputs
        union = {name for ticket in tickets for name in ticket.request.outputs or ()}
        return tuple(name for name in self._outputs if name in union)

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
                    f" {items}, so its first dimension is not a batch, although its configuration sets"
                    f" max_batch_size to {self._declared_batch}: set it to 0"
                )

    def _split(
        self, tickets: Sequence[Ticket], names: tuple[str, ...], arrays: list[np.ndarray]
    ) -> list[InferResponse | BacklineError | None]:
        items = sum([ticket.batch_size for ticket in tickets])
        whole = [self._tensor(name, array) for name, array in zip(names, arrays, strict=True)]
        for tensor in whole:
            if not tensor.shape or tensor.shape[0] != items:
                raise Internal(
                    f"output '{tensor.name}' of model '{self._name}' has shape {list(tensor.shape)}"
                    f" for a batch of {items}"
                )
        responses: list[InferResponse | BacklineError | None] = []
        end = 0
        for ticket in tickets:
            start, end = end, end + ticket.batch_size
            wanted = ticket.request.outputs
            outputs = []
            for tensor in whole:
                if wanted is None or tensor.name in wanted:
                    rows = tensor.data[start:end]
                    outputs.append(Tensor(tensor.name, tensor.datatype, rows.shape, rows))
            responses.append(InferResponse(self._name, self._version, ticket.request.id, outputs))
        return responses

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


class _WaitingRun:
    """A run that waits for cores of the budget."""

    __slots__ = ("cores", "granted")

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self.granted = threading.Lock()
        self.granted.acquire()


class CoreBudget:
    """A limit on the number of cores in use. Runs get cores in the order in which they ask. The methods are
    called on the threads of the runs.

    A run that has waited for PATIENCE starts anyway, so that a model with long runs does not block the
    others.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._free = cores
        self._lock = threading.Lock()
        self._waiting: deque[_WaitingRun] = deque()

    def take(self, cores: int) -> bool:
        """Takes `cores` cores, waiting until they are free. Returns whether it had to wait."""
        with self._lock:
            if self._free >= cores and not self._waiting:
                self._free -= cores
                return False
            waiting = _WaitingRun(cores)
            self._waiting.append(waiting)
        if not waiting.granted.acquire(timeout=PATIENCE):
            with self._lock:
                if waiting in self._waiting:  # otherwise the cores have been granted in the meantime
                    self._waiting.remove(waiting)
                    self._free -= cores
        return True

    def give(self, cores: int) -> None:
        """Gives the cores that the caller took back to the budget."""
        with self._lock:
            self._free += cores
            waiting = self._waiting
            while waiting and self._free >= waiting[0].cores:
                self._free -= waiting[0].cores
                waiting.popleft().granted.release()


class BudgetedExecution:
    """The execution of batches within a budget of cores. A run on `threads` threads (0 for one per core)
    takes half as many cores, because its threads are rarely all busy.
    """

    def __init__(self, execute: Callable[[Batch], None], budget: CoreBudget, threads: int) -> None:
        self._execute = execute
        self._budget = budget
        self._cores = (min(threads or budget.cores, budget.cores) + 1) // 2
        self._held: dict[Batch, None] = {}

    def __call__(self, batch: Batch) -> None:
        """Runs a batch; see Execution. Time spent waiting for cores counts as time in the queue."""
        if self._budget.take(self._cores):
            batch.started_ns = monotonic_ns()
        self._held[batch] = None
        try:
            self._execute(batch)
        finally:
            self.release(batch)

    def release(self, batch: Batch) -> None:
        """Frees the cores of a batch that ended or whose thread was abandoned. Thread-safe, idempotent."""
        if self._held.pop(batch, batch) is None:
            self._budget.give(self._cores)
