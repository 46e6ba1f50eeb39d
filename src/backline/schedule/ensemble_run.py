"""One request on its way through an ensemble."""

from __future__ import annotations

import logging
from time import monotonic_ns
from typing import TYPE_CHECKING

from backline.engine.errors import BacklineError, Internal
from backline.engine.messages import InferRequest, InferResponse, ResponseFlow
from backline.engine.tensor import Tensor
from backline.schedule.ensemble_graph import EnsemblePlan
from backline.schedule.ensemble_progress import EnsembleProgress, Round

if TYPE_CHECKING:
    from backline.schedule.ensemble import EnsembleQueue

log = logging.getLogger("backline.schedule")


class EnsembleRun:
    """Carries out what EnsembleProgress decides: submits the steps, and answers. Lives on the event loop."""

    __slots__ = ("_advancing", "_flows", "_open", "_over", "_plan", "_progress", "_queue", "_request", "_started_ns")

    def __init__(self, queue: EnsembleQueue, request: InferRequest, plan: EnsemblePlan) -> None:
        self._queue = queue
        self._request = request
        self._plan = plan
        self._progress = EnsembleProgress(plan, request.inputs, queue.max_inflight)
        #: The requests to models that are under way: whose round each belongs to, and its step's number in the plan.
        self._open: dict[InferRequest, tuple[Round, int]] = {}
        #: By level, what the decoupled step looks at that gives its rounds.
        self._flows: dict[int, ResponseFlow] = {}
        self._advancing = False
        self._over = False
        self._started_ns = monotonic_ns()

    def start(self) -> None:
        """Starts the steps that wait for no other. Raises the error of one that is refused, and gives up the others."""
        request = self._request
        request.on_cancel = self.cancelled
        if request.flow is not None:
            request.flow.on_resume = self._pace
        try:
            self._advance()
        except BacklineError:
            self._count_failure()
            self._give_up()
            raise

    def _advance(self) -> None:
        """Does what is to be done now. Raises the error of a step that is refused at once, named."""
        if self._advancing:  # a step was answered while it was submitted: who does that goes on
            return
        self._advancing = True
        progress = self._progress
        try:
            while not self._over:
                if progress.ready:
                    self._submit(*progress.ready.popleft())
                elif (answer := progress.next_answer()) is not None:
                    self._answer(answer)
                else:
                    break
        finally:
            self._advancing = False
        if self._plan.chain and not self._over:  # else it is over with its only answer
            if progress.finished:
                self._finish(None)
            else:
                self._pace()

    def _submit(self, begun: Round, number: int) -> None:
        planned = self._plan.steps[number]
        step = planned.step
        model, mixed = self._queue.models[planned.index], self._queue.mixed
        asked = self._request
        inputs = {}
        for name, tensor in step.inputs.items():
            given = begun.tensors.get(tensor)
            if given is not None:  # else an optional input of the ensemble; whether it is one of the step's, its model knows
                inputs[name] = model.fit(name, given) if mixed else Tensor(name, given.datatype, given.shape, given.data)
        request = InferRequest(
            step.model,
            inputs,
            self._answered,
            model_version=step.version,
            id=asked.id,
            outputs=planned.names,
            parameters=asked.parameters,
            priority=asked.priority,
            deadline=asked.deadline,
            timeout=asked.timeout,
            sequence=asked.sequence,
        )
        request.trace = asked.trace
        if planned.decoupled:
            request.on_response = self._responded
            request.flow = self._flows[planned.level + 1] = ResponseFlow()
            self._pace()
        self._open[request] = begun, number
        try:
            self._queue.submit_step(request)
        except BacklineError as error:
            self._open.pop(request, None)
            raise self._named(error, step.model) from None

    def _pace(self) -> None:
        """Lets decoupled steps wait while the steps behind them, or who asked, have enough."""
        if not self._flows:
            return
        asked = self._request.flow
        slow_reader = asked is not None and asked.paused
        for level, flow in self._flows.items():
            full = slow_reader or self._progress.full(level)
            if full != flow.paused:
                (flow.pause if full else flow.resume)()

    # from the steps

    def _responded(self, request: InferRequest, response: InferResponse) -> None:
        """One of many responses of a step."""
        open_request = self._open.get(request)
        if open_request is not None and self._take(*open_request, response):
            self._go_on()

    def _answered(self, request: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        open_request = self._open.pop(request, None)
        if open_request is None or self._over:
            return
        begun, number = open_request
        planned = self._plan.steps[number]
        if error is None and response is None and not planned.decoupled:
            error = Internal(f"model '{request.model_name}' gave no response")
        if error is not None:
            self.fail(self._named(error, request.model_name))
            return
        if response is not None and not self._take(begun, number, response):
            return
        if planned.decoupled:
            del self._flows[planned.level + 1]
        if self._plan.chain:
            self._progress.ended(begun, number)
        self._go_on()

    def _take(self, begun: Round, number: int, response: InferResponse) -> bool:
        """Notes the tensors of a response; whether the request goes on."""
        planned = self._plan.steps[number]
        there = {tensor.name: tensor for tensor in response.outputs}
        tensors: dict[str, Tensor | None] = {}
        for name, tensor in planned.outputs:
            tensors[tensor] = there.get(name)
            if tensors[tensor] is None and not planned.decoupled:
                model = response.model_name
                self.fail(self._named(Internal(f"model '{model}' did not give output '{name}' (ensemble tensor '{tensor}')"), model))
                return False
        self._progress.responded(begun, number, tensors)
        return True

    def _go_on(self) -> None:
        try:
            self._advance()
        except BacklineError as refused:
            self.fail(refused)

    # to who asked

    def _answer(self, answered: Round) -> None:
        """Answers with the outputs of a round."""
        queue, asked = self._queue, self._request
        outputs = []
        for name in self._plan.outputs:
            tensor = answered.tensors.get(name)
            if tensor is not None:
                outputs.append(queue.itself.fit(name, tensor) if queue.mixed else Tensor(name, tensor.datatype, tensor.shape, tensor.data))
        response = InferResponse(queue.name, queue.version, asked.id, outputs)
        if not self._plan.depth:
            self._finish(response)
        elif asked.on_response is not None:
            try:
                asked.on_response(asked, response)
            except Exception:
                log.exception("a response of ensemble '%s' could not be delivered", queue.name)

    def _finish(self, response: InferResponse | None) -> None:
        ended, started, asked = monotonic_ns(), self._started_ns, self._request
        self._queue.statistics.record_batch([asked.arrived_ns], asked.batch_size, started, started, ended, ended)
        self._complete(response, None)

    def fail(self, error: BacklineError) -> None:
        """Answers with an error, and gives up the steps that are under way."""
        if self._over:
            return
        self._count_failure()
        self._complete(None, error)

    def _count_failure(self) -> None:
        self._queue.statistics.fail.add(1, monotonic_ns() - self._request.arrived_ns)

    def cancelled(self, _: InferRequest) -> None:
        """Nobody waits for the answer any more: no further step begins, and those under way are cancelled."""
        if not self._over:
            self._queue.statistics.record_cancelled(self._request)
            self._give_up()

    def _complete(self, response: InferResponse | None, error: BacklineError | None) -> None:
        self._give_up()
        asked = self._request
        if asked.cancelled:
            return
        try:
            asked.on_complete(asked, response, error)
        except Exception:
            log.exception("the answer of ensemble '%s' could not be delivered", self._queue.name)

    def _give_up(self) -> None:
        """The request is over; the steps that are under way are cancelled."""
        self._over = True
        asked = self._request
        asked.on_cancel = None
        if asked.flow is not None:
            asked.flow.on_resume = None
        open_requests, self._open = self._open, {}
        for request in open_requests:
            request.cancel()
            if request.flow is not None:
                request.flow.resume()
        self._flows = {}
        self._queue.ended(self)

    def _named(self, error: BacklineError, model: str) -> BacklineError:
        """The same failure, which says in which ensemble, in Triton's words, and at which model."""
        reason = error.message if f"'{model}'" in error.message else f"model '{model}': {error.message}"
        named = type(error)(f"in ensemble '{self._queue.name}', {reason}")
        named.retry_after = error.retry_after
        return named
