"""Combines requests that reach an ensemble in the same turn of the event loop into a single request, if all
steps run on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic, monotonic_ns
from typing import TYPE_CHECKING, Protocol, TypeGuard

from backline.engine.model import Model, RequestQueue
from backline.engine.statistics import ComputeTimes
from backline.engine.ticket import Owner, Ticket, unsubmitted
from backline.schedule.ensembles.graph import EnsemblePlan, PlannedStep
from backline.schedule.queues.queue import expired_in_queue
from backline.schedule.tally import Tally
from backline.schedule.turn import LONGEST_NS
from backline.workers.batch import Batch
from backline.workers.stacking import split, stack
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferRequest, InferResponse
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.ensembles.queue import EnsembleQueue


class RunsAtOnce(Protocol):
    """A queue that may be able to run a request immediately, on the event loop; see Scheduler."""

    tally: Tally

    @property
    def most_at_once(self) -> int: ...

    def run_at_once(self, ticket: Ticket) -> Batch: ...


def queue_at_once(model: Model) -> RunsAtOnce | None:
    """Returns the queue of a model if it may be able to run requests immediately. Returns None if it cannot,
    or if requests to the model must not be stacked: because they are recorded one by one, because the model
    must not run them again if a later step fails, or because it has its own rules for joining requests.
    """
    queue, config = model.serving.queue, model.config
    if not _runs_at_once(queue) or model.recording is not None or config.idempotent is False:
        return None
    return queue if config.joining is None else None


def _runs_at_once(queue: RequestQueue) -> TypeGuard[RunsAtOnce]:
    return hasattr(queue, "run_at_once")


class StackedRun(Owner):
    """A run that serves the requests of a turn that have equal batch keys. At the end of the turn, their
    inputs are stacked, each step runs once, and the outputs are split. All methods must be called on the
    event loop.

    No step is counted before the last step has succeeded. If a step fails, the requests start again from the
    first step, each by itself, so that only invalid requests fail.
    """

    __slots__ = (
        "_items",
        "_key",
        "_most",
        "_plan",
        "_queue",
        "_ran",
        "_ready",
        "_started_ns",
        "_tensors",
        "_tickets",
        "_waits",
    )

    def __init__(self, queue: EnsembleQueue, plan: EnsemblePlan, key: object, most: int) -> None:
        """Creates a run for at most `most` items. `key` identifies the run in the queue as long as requests
        may join it.
        """
        self._queue = queue
        self._plan = plan
        self._key = key
        self._most = most
        self._tickets: list[Ticket] = []
        self._items = 0
        self._started_ns = 0
        self._tensors: dict[str, Tensor] = {}
        #: For each step of the plan, the number of tensors that the step still waits for.
        self._waits = list(plan.waits)
        #: The steps that wait for no tensors, but have not run yet.
        self._ready = deque(plan.first)
        #: The steps that have run, each with its batch and the tally that will count the batch.
        self._ran: list[tuple[PlannedStep, Batch, Tally]] = []

    @property
    def requests(self) -> int:
        """The number of requests that the run serves, not counting those that were cancelled."""
        return sum([not ticket.cancelled for ticket in self._tickets])

    @property
    def room(self) -> int:
        """The number of items by which the run may still grow."""
        return self._most - self._items

    def join(self, ticket: Ticket) -> None:
        """Adds a request with at most `room` items."""
        ticket.enqueue(self)
        self._tickets.append(ticket)
        self._items += ticket.batch_size

    def start(self) -> None:
        """Runs the steps, for the requests that are neither cancelled nor expired."""
        self._queue.gathered(self._key, self)
        now = monotonic()
        for ticket in self._tickets:
            if ticket.deadline is not None and ticket.deadline <= now and not ticket.cancelled:
                ticket.release()
                self._queue.statistics.record_expired(ticket)
                ticket.expire(expired_in_queue(ticket, now, self._queue.name, by_policy=False))
        self._tickets = [ticket for ticket in self._tickets if not ticket.cancelled]
        if not self._tickets:
            self._end()
            return
        self._items = sum([ticket.batch_size for ticket in self._tickets])
        self._started_ns = monotonic_ns()
        try:
            self._stack()
        except MemoryError:  # the stacked inputs may be too large
            self._run_apart()
            return
        self._advance()

    def _advance(self) -> None:
        """Runs the remaining steps, and completes the requests after the last one. After LONGEST_NS, the
        event loop serves the sockets before the next step.
        """
        if not self._tickets:  # all are cancelled, or the ensemble was unloaded
            return
        until = monotonic_ns() + LONGEST_NS
        while self._ready:
            if not self._run(self._ready.popleft()):
                self._run_apart()
                return
            if self._ready and monotonic_ns() > until:
                asyncio.get_running_loop().call_soon(self._advance)
                return
        self._finish()

    def _stack(self) -> None:
        given = self._tickets[0].request.inputs
        if len(self._tickets) == 1:
            self._tensors.update(given)
            return
        for name, array in stack(self._tickets).items():
            self._tensors[name] = Tensor(name, given[name].datatype, array.shape, array)

    def _run(self, planned: PlannedStep) -> bool:
        """Runs a step. Returns whether it succeeded and returned a row for each item."""
        step, tensors = planned.step, self._tensors
        inputs = {}
        for name, source in planned.inputs:
            given = tensors.get(source)
            if given is not None:
                inputs[name] = Tensor(name, given.datatype, given.shape, given.data)
        ticket = unsubmitted(InferRequest(step.model, inputs, step.version, outputs=planned.names))
        try:
            model = self._queue.find(step.model, step.version)
            queue = queue_at_once(model)
            if queue is None or queue.most_at_once < self._items:
                return False
            model.serving.check(ticket)
        except BacklineError:
            return False
        batch = queue.run_at_once(ticket)
        response = batch.outcomes[0]
        if not isinstance(response, InferResponse):
            return False
        for tensor in response.outputs:
            if tensor.shape[:1] != (self._items,):
                return False
            tensors[planned.targets[tensor.name]] = tensor
        self._ran.append((planned, batch, queue.tally))
        for number, count in planned.followers:
            self._waits[number] -= count
            if not self._waits[number]:
                self._ready.append(self._plan.steps[number])
        return True

    def _finish(self) -> None:
        """Counts the steps and the requests, and completes the requests."""
        queue, tickets = self._queue, self._tickets
        count = len(tickets)
        compute = ComputeTimes()
        for planned, batch, tally in self._ran:
            started, ended = batch.started_ns, batch.ended_ns
            compute.add(batch.gathered_ns - started, batch.ran_ns - batch.gathered_ns, ended - batch.ran_ns)
            queue.calls[planned.index].success.add(count, (ended - started) * count)
            batch.tickets *= count
            tally.ran(batch)
        outputs = []
        for name in self._plan.outputs:
            tensor = self._tensors.get(name)
            if tensor is not None:
                outputs.append(Tensor(name, tensor.datatype, tensor.shape, tensor.data))
        responses = split(tickets, outputs, queue.name, queue.version)
        self._end()
        ended = monotonic_ns()
        first = queue.turn.begin_completions()
        for ticket, response in zip(tickets, responses, strict=True):
            if not ticket.cancelled:
                queue.statistics.record_in_steps(ticket, self._started_ns, ended, compute)
                ticket.complete(response, None)
        if first:
            queue.turn.end_completions(asyncio.get_running_loop())

    def _run_apart(self) -> None:
        tickets = self._tickets
        self._end()
        self._queue.run_apart(tickets, self._plan)

    def _end(self) -> None:
        self._tickets = []
        self._queue.gathered(self._key, self)
        self._queue.ended(self)

    def fail(self, error: BacklineError) -> None:
        """Completes the requests with an error."""
        tickets = self._tickets
        self._end()
        for ticket in tickets:
            if not ticket.cancelled:
                self._queue.statistics.fail.add(1, monotonic_ns() - ticket.request.arrived_ns)
                ticket.complete(None, error)

    def cancelled(self, ticket: Ticket) -> None:
        """Counts a request that was cancelled; see Owner. The other requests of the run continue."""
        self._queue.statistics.record_cancelled(ticket)
        if all(other.cancelled for other in self._tickets):
            self._end()
