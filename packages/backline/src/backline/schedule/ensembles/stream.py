"""Runs a request through an ensemble with decoupled steps."""

from __future__ import annotations

from time import monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.ticket import Ticket
from backline.schedule.ensembles.graph import EnsemblePlan, PlannedStep
from backline.schedule.ensembles.progress import EnsembleProgress, Round
from backline.schedule.ensembles.run import EnsembleRun, no_response
from backline_client.values.errors import BacklineError
from backline_client.values.messages import InferResponse, ResponseFlow
from backline_client.values.tensor import Tensor

if TYPE_CHECKING:
    from backline.schedule.ensembles.queue import EnsembleQueue


class StreamRun(EnsembleRun):
    """An EnsembleRun that carries out the decisions of EnsembleProgress: it submits the requests of steps,
    and sends responses.
    """

    __slots__ = ("_advancing", "_answers", "_flows", "_open", "_progress", "_responded_ns")

    def __init__(self, queue: EnsembleQueue, ticket: Ticket, plan: EnsemblePlan) -> None:
        super().__init__(queue, ticket, plan)
        self._progress = EnsembleProgress(plan, ticket.request.inputs, queue.max_inflight)
        #: The requests to models that are in flight, with the round and the number of the step in the plan.
        self._open: dict[Ticket, tuple[Round, int]] = {}
        #: For each level, the flow of the decoupled step that begins the rounds of the level.
        self._flows: dict[int, ResponseFlow] = {}
        self._advancing = False
        #: The number of responses sent so far.
        self._answers = 0
        #: The time when the last response was sent.
        self._responded_ns = self._started_ns

    def _begin(self) -> None:
        if self._ticket.flow is not None:
            self._ticket.flow.on_resume = self._pace
        self._advance()

    def _advance(self) -> None:
        """Carries out what EnsembleProgress has decided. If the request of a step is refused, raises the
        error that `_failed` returns.
        """
        if self._advancing:  # a step completed while it was being submitted; the outer call continues
            return
        self._advancing = True
        progress = self._progress
        try:
            while not self._over:
                if progress.ready:
                    self._submit(*progress.ready.popleft())
                elif (answer := progress.next_answer()) is not None:
                    if progress.finished:  # as in Triton, the last response has a flag that says so
                        self._finish(self._response(answer.tensors))
                    else:
                        self._answer(answer)
                else:
                    break
        finally:
            self._advancing = False
        if self._over:
            return
        if progress.finished:
            self._finish(None)
        else:
            self._pace()

    def _submit(self, begun: Round, number: int) -> None:
        planned = self._plan.steps[number]
        model, mixed = self._queue.models[planned.index], self._queue.mixed
        inputs = {}
        for name, source in planned.inputs:
            given = begun.tensors.get(source)
            # The tensor is None if it is an optional input that the request lacks, or an output that a step
            # omitted. The model of the step checks whether the tensor is required.
            if given is not None:
                inputs[name] = (
                    model.fit(name, given) if mixed else Tensor(name, given.datatype, given.shape, given.data)
                )
        if planned.decoupled:
            flow = self._flows[planned.level + 1] = ResponseFlow()
            ticket = self._ask(planned, inputs, self._responded, flow)
            self._pace()
        else:
            ticket = self._ask(planned, inputs)
        self._open[ticket] = begun, number
        try:
            self._queue.submit_step(ticket)
        except BacklineError as error:
            self._open.pop(ticket, None)
            raise self._failed(ticket, planned, error) from None

    def _pace(self) -> None:
        """Pauses decoupled steps while the steps that follow, or the caller, cannot keep up."""
        if not self._flows:
            return
        asked = self._ticket.flow
        slow_reader = asked is not None and asked.paused
        for level, flow in self._flows.items():
            full = slow_reader or self._progress.full(level)
            if full != flow.paused:
                (flow.pause if full else flow.resume)()

    # responses of steps

    def _responded(self, ticket: Ticket, response: InferResponse) -> None:
        """Processes a response of a step. A decoupled step may send several."""
        open_request = self._open.get(ticket)
        if open_request is not None:
            self._take(*open_request, response)
            self._go_on()

    def _answered(self, ticket: Ticket, response: InferResponse | None, error: BacklineError | None) -> None:
        open_request = self._open.pop(ticket, None)
        if open_request is None or self._over:
            return
        begun, number = open_request
        planned = self._plan.steps[number]
        if error is None and response is None and not planned.decoupled:
            error = no_response(planned)
        if error is not None:
            self.fail(self._failed(ticket, planned, error))
            return
        if response is not None:
            self._take(begun, number, response)
        self._queue.calls[planned.index].success.add(1, monotonic_ns() - ticket.request.arrived_ns)
        if planned.decoupled:
            del self._flows[planned.level + 1]
        self._progress.ended(begun, number)
        self._go_on()

    def _take(self, begun: Round, number: int, response: InferResponse) -> None:
        """Records the tensors of a response. A step may omit outputs."""
        there = {tensor.name: tensor for tensor in response.outputs}
        planned = self._plan.steps[number]
        self._progress.responded(begun, number, {tensor: there.get(name) for name, tensor in planned.outputs})

    def _go_on(self) -> None:
        try:
            self._advance()
        except BacklineError as refused:
            self.fail(refused)

    # responses to the caller

    def _answer(self, answered: Round) -> None:
        """Sends the outputs of a round."""
        asked = self._ticket
        response = self._response(answered.tensors)
        self._count_response(response)
        self._answers += 1
        self._responded_ns = monotonic_ns()
        asked.respond(response)

    @property
    def _next_response(self) -> tuple[int, int]:
        return self._answers, self._responded_ns

    def _give_up(self) -> None:
        asked = self._ticket
        if asked.flow is not None:
            asked.flow.on_resume = None
        self._flows = {}
        super()._give_up()

    def _under_way(self) -> list[tuple[Ticket, PlannedStep]]:
        tickets, self._open = self._open, {}
        return [(ticket, self._plan.steps[number]) for ticket, (_, number) in tickets.items()]
