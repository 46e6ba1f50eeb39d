"""Runs a single request through an ensemble. This module contains the base class of such runs, and the runs
without decoupled steps.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING, ClassVar

from backline.engine.statistics import ComputeTimes
from backline.engine.ticket import OnResponse, Owner, Ticket
from backline.schedule.ensembles.graph import EnsemblePlan, PlannedStep
from backline_client.values.errors import BacklineError, Internal
from backline_client.values.messages import InferRequest, InferResponse, ResponseFlow
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.ensembles.queue import EnsembleQueue


class EnsembleRun(Owner):
    """The base class of runs that serve a single request until it completes or fails. All methods must be
    called on the event loop.
    """

    __slots__ = ("_compute", "_over", "_plan", "_queue", "_started_ns", "_ticket")

    #: The number of requests that the run serves.
    requests: ClassVar = 1

    def __init__(self, queue: EnsembleQueue, ticket: Ticket, plan: EnsemblePlan) -> None:
        self._queue = queue
        self._ticket = ticket
        self._plan = plan
        self._over = False
        self._compute = ComputeTimes()
        self._started_ns = monotonic_ns()

    def start(self) -> None:
        """Starts the steps that need no tensors from other steps. If a step is refused, cancels the other
        steps and raises the error of the refused step.
        """
        self._ticket.enqueue(self)
        try:
            self._begin()
        except BacklineError:
            # If the run is already over, another step has failed, or the request was cancelled: the ticket
            # has ended, and must not be refused too.
            if not self._over:
                self._count_failure()
                self._give_up()
                raise

    def _begin(self) -> None:
        """Submits the first steps. If a step is refused, raises the error."""
        raise NotImplementedError

    def _under_way(self) -> list[tuple[Ticket, PlannedStep]]:
        """Removes and returns the tickets of the steps in flight."""
        raise NotImplementedError

    def _ask(
        self,
        planned: PlannedStep,
        inputs: dict[str, Tensor],
        on_response: OnResponse | None = None,
        flow: ResponseFlow | None = None,
    ) -> Ticket:
        """Creates the ticket of a step. Its request is a copy of the request to the ensemble, but with the
        model, inputs and outputs of the step.
        """
        asked, step, deadline = self._ticket.request, planned.step, self._ticket.deadline
        request = InferRequest(
            step.model,
            inputs,
            step.version,
            asked.id,
            planned.names,
            asked.parameters,
            asked.priority,
            deadline,
            asked.timeout,
            asked.sequence,
            monotonic_ns(),
            asked.via,
        )
        ticket = Ticket(request, self._answered, on_response, flow, planned, self._ticket.trace)
        ticket.compute = self._compute
        ticket.identity = self._ticket.identity
        return ticket

    def _answered(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        """Handles the completion of a step's request."""
        raise NotImplementedError

    # responses to the caller

    def _response(self, tensors: dict[str, Tensor | None]) -> InferResponse:
        """Returns a response with the ensemble's outputs."""
        queue = self._queue
        outputs = []
        for name in self._plan.outputs:
            tensor = tensors.get(name)
            if tensor is not None and queue.mixed:
                outputs.append(queue.itself.fit(name, tensor))
            elif tensor is not None:
                outputs.append(Tensor(name, tensor.datatype, tensor.shape, tensor.data))
        return InferResponse(queue.name, queue.version, self._ticket.request.id, outputs)

    def _finish(self, response: InferResponse | None) -> None:
        if response is not None:
            self._count_response(response)
        self._queue.statistics.record_in_steps(self._ticket, self._started_ns, monotonic_ns(), self._compute)
        self._complete(response, None)

    @property
    def _next_response(self) -> tuple[int, int]:
        """The index of the next response to the request, and the time when the previous response was sent or,
        before the first one, when the run started.
        """
        return 0, self._started_ns

    def _count_response(self, response: InferResponse) -> None:
        responses = self._queue.statistics.responses
        if responses is not None:
            now = monotonic_ns()
            index, began = self._next_response
            responses.succeeded(
                index, self._ticket.request.arrived_ns, began, now, now, empty=not response.outputs
            )

    def fail(self, error: BacklineError) -> None:
        """Completes the request with an error, and cancels the steps in flight."""
        if self._over:
            return
        self._count_failure()
        self._complete(None, error)

    def _count_failure(self) -> None:
        statistics, now = self._queue.statistics, monotonic_ns()
        statistics.fail.add(1, now - self._ticket.request.arrived_ns)
        if statistics.responses is not None:
            statistics.responses.failed(*self._next_response, now)

    def cancelled(self, _: Ticket) -> None:
        """Ends the run and cancels the steps in flight, because the request is cancelled; see Owner."""
        if not self._over:
            statistics = self._queue.statistics
            statistics.record_cancelled(self._ticket)
            if statistics.responses is not None:
                statistics.responses.cancelled(*self._next_response, monotonic_ns())
            self._give_up()

    def _complete(self, response: InferResponse | None, error: BacklineError | None) -> None:
        self._give_up()
        self._ticket.complete(response, error)

    def _give_up(self) -> None:
        """Ends the run and cancels the steps in flight."""
        self._over = True
        for ticket, planned in self._under_way():
            self._queue.calls[planned.index].cancel.add(1, monotonic_ns() - ticket.request.arrived_ns)
            ticket.cancel()
            # A paused model must be resumed before its run can end.
            if ticket.flow is not None:
                ticket.flow.resume()
        self._queue.ended(self)

    def _failed(self, ticket: Ticket, planned: PlannedStep, error: BacklineError) -> BacklineError:
        """Counts the failure of a step. Returns the error of the step, with the names of the ensemble and the
        model added.
        """
        self._queue.calls[planned.index].fail.add(1, monotonic_ns() - ticket.request.arrived_ns)
        model = planned.step.model
        reason = error.message if f"'{model}'" in error.message else f"model '{model}': {error.message}"
        named = type(error)(f"in ensemble '{self._queue.name}', {reason}")
        named.retry_after = error.retry_after
        return named


class UnaryRun(EnsembleRun):
    """A run in which each step responds once, so that responses need be neither paced nor put in order."""

    __slots__ = ("_left", "_open", "_tensors", "_waits")

    def __init__(self, queue: EnsembleQueue, ticket: Ticket, plan: EnsemblePlan) -> None:
        super().__init__(queue, ticket, plan)
        self._tensors: dict[str, Tensor | None] = dict(ticket.request.inputs)
        self._waits = list(plan.waits)
        self._left = len(plan.steps)
        #: The tickets of the steps in flight, that is, of the requests to models.
        self._open: set[Ticket] = set()

    def _begin(self) -> None:
        for planned in self._plan.first:
            if self._over:
                return
            self._submit(planned)
        if not self._left:  # all requested outputs are inputs of the ensemble
            self._finish(self._response(self._tensors))

    def _submit(self, planned: PlannedStep) -> None:
        """Submits the request of a step. If it is refused, raises the error that `_failed` returns."""
        queue = self._queue
        ticket = self._ask(planned, self._inputs(planned))
        self._open.add(ticket)
        try:
            queue.turn.submit_step(queue.submit_step, ticket)
        except BacklineError as error:
            self._open.discard(ticket)
            raise self._failed(ticket, planned, error) from None

    def _inputs(self, planned: PlannedStep) -> dict[str, Tensor]:
        tensors = self._tensors
        inputs = {}
        for name, source in planned.inputs:
            tensor = tensors.get(source)
            # The tensor is None if it is an optional input that the request lacks, or an output that a step
            # omitted. The model of the step checks whether the tensor is required.
            if tensor is not None:
                inputs[name] = Tensor(name, tensor.datatype, tensor.shape, tensor.data)
        return inputs

    def _answered(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        if self._over:
            return
        self._open.discard(ticket)
        planned: PlannedStep = ticket.context
        if response is None:
            self.fail(self._failed(ticket, planned, error or no_response(planned)))
            return
        # A step may omit outputs, as in Triton. Then neither the steps that follow nor the caller get these
        # outputs.
        targets, tensors = planned.targets, self._tensors
        for tensor in response.outputs:
            target = targets.get(tensor.name)
            if target is not None:
                tensors[target] = tensor
        success = self._queue.calls[planned.index].success
        success.count += 1  # Duration.add is inlined, for speed
        success.ns += monotonic_ns() - ticket.request.arrived_ns
        self._left -= 1
        if not self._left:
            self._finish(self._response(tensors))
            return
        waits = self._waits
        try:
            for number, count in planned.followers:
                waits[number] -= count
                if not waits[number] and not self._over:
                    self._submit(self._plan.steps[number])
        except BacklineError as refused:
            self.fail(refused)

    def _under_way(self) -> list[tuple[Ticket, PlannedStep]]:
        if not self._open:
            return []
        tickets, self._open = self._open, set()
        return [(ticket, ticket.context) for ticket in tickets]


class FittedRun(UnaryRun):
    """A UnaryRun that adapts tensors between models with and without a batch dimension."""

    __slots__ = ()

    def _inputs(self, planned: PlannedStep) -> dict[str, Tensor]:
        model = self._queue.models[planned.index]
        given = ((name, self._tensors.get(source)) for name, source in planned.inputs)
        return {name: model.fit(name, tensor) for name, tensor in given if tensor is not None}


def no_response(planned: PlannedStep) -> Internal:
    """Returns the error for a step whose model completed with neither a response nor an error."""
    return Internal(f"model '{planned.step.model}' completed its step without a response")
