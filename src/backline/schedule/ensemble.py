"""The queue of an ensemble: each request becomes requests to other models, which run as soon as their tensors are there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from time import monotonic_ns

from backline.engine.ensemble import Ensemble
from backline.engine.errors import BacklineError, Internal, Unavailable
from backline.engine.messages import InferRequest, InferResponse
from backline.engine.statistics import ModelStatistics
from backline.engine.tensor import Tensor
from backline.schedule.ensemble_graph import EnsemblePlan, plan_ensemble

log = logging.getLogger("backline.schedule")

#: Sets of outputs whose plans are kept; clients ask for few.
_KEPT_PLANS = 64


class EnsembleQueue:
    """Runs the requests of one version of an ensemble. Lives on the event loop.

    Nothing waits here: a step waits in the queue of its model, where it is joined with whatever else that model is asked. `submit` is
    Engine.submit. Tensors go from step to step as they are. What the request says besides its tensors, its id, parameters, priority,
    sequence, timeout and deadline, each step's request says too.
    """

    def __init__(
        self,
        name: str,
        version: str,
        ensemble: Ensemble,
        outputs: tuple[str, ...],
        submit: Callable[[InferRequest], None],
        statistics: ModelStatistics,
    ) -> None:
        """`outputs` are all outputs of the ensemble, in their order."""
        self.name = name
        self.version = version
        self.submit_step = submit
        self.statistics = statistics
        self._ensemble = ensemble
        self._outputs = outputs
        self._plans: dict[tuple[str, ...], EnsemblePlan] = {}
        self._runs: set[_Run] = set()
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """Requests that wait: none does here."""
        return 0

    @property
    def running(self) -> int:
        """Requests of which steps run or wait."""
        return len(self._runs)

    def submit(self, request: InferRequest) -> None:
        """Starts the first steps. Raises BacklineError when one of them is refused at once, as by a full queue."""
        run = _Run(self, request, self._plan(request.outputs or self._outputs))
        self._runs.add(run)
        request.on_cancel = run.cancelled
        try:
            run.start()
        except BacklineError:
            request.on_cancel = None
            self._runs.discard(run)
            raise

    async def drain(self, limit: float) -> None:
        """Lets the requests that run end, for at most `limit` seconds; then they fail. Nothing may be submitted any more."""
        if self._runs:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._drained,), timeout=limit)
        for run in tuple(self._runs):
            run.fail(Unavailable(f"model '{self.name}' is being unloaded", retry_after=1))

    def _plan(self, outputs: tuple[str, ...]) -> EnsemblePlan:
        plan = self._plans.get(outputs)
        if plan is None:
            if len(self._plans) >= _KEPT_PLANS:
                self._plans.clear()
            plan = self._plans[outputs] = plan_ensemble(self._ensemble, outputs)
        return plan

    def ended(self, run: _Run) -> None:
        """A request is done, in whatever way."""
        self._runs.discard(run)
        if not self._runs and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)


class _Run:
    """One request on its way through the ensemble."""

    __slots__ = ("_open", "_over", "_plan", "_queue", "_request", "_started_ns", "_tensors", "_waits")

    def __init__(self, queue: EnsembleQueue, request: InferRequest, plan: EnsemblePlan) -> None:
        self._queue = queue
        self._request = request
        self._plan = plan
        self._tensors = dict(request.inputs)
        self._waits = list(plan.waits)
        #: The requests to models that are under way, and their numbers in the plan.
        self._open: dict[InferRequest, int] = {}
        self._over = False
        self._started_ns = monotonic_ns()

    def start(self) -> None:
        """Starts the steps that wait for no other. Raises the error of one that is refused, and gives up the others."""
        for number, waits in enumerate(self._plan.waits):
            if not waits:
                try:
                    self._submit(number)
                except BacklineError as error:
                    self._give_up()
                    raise self._named(error) from None
                if self._over:
                    return

    def _submit(self, number: int) -> None:
        planned = self._plan.steps[number]
        step = planned.step
        asked = self._request
        inputs = {}
        for name, tensor in step.inputs.items():
            given = self._tensors.get(tensor)
            if given is not None:  # else an optional input of the ensemble; whether it is one of the step's, its model knows
                inputs[name] = Tensor(name, given.datatype, given.shape, given.data)
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
        self._open[request] = number
        try:
            self._queue.submit_step(request)
        except BacklineError:
            self._open.pop(request, None)
            raise

    def _answered(self, request: InferRequest, response: InferResponse | None, error: BacklineError | None) -> None:
        number = self._open.pop(request, None)
        if self._over or number is None:
            return
        if self._request.cancelled:
            self.cancelled(self._request)
            return
        if response is None:
            self.fail(self._named(error or Internal(f"model '{request.model_name}' gave no response")))
            return
        there = {tensor.name: tensor for tensor in response.outputs}
        ready: list[int] = []
        for name, tensor in self._plan.steps[number].outputs:
            given = there.get(name)
            if given is None:
                self.fail(self._named(Internal(f"model '{request.model_name}' did not give output '{name}' (ensemble tensor '{tensor}')")))
                return
            self._tensors[tensor] = given
            for consumer in self._plan.consumers.get(tensor, ()):
                self._waits[consumer] -= 1
                if not self._waits[consumer]:
                    ready.append(consumer)
        for consumer in ready:
            try:
                self._submit(consumer)
            except BacklineError as refused:
                self.fail(self._named(refused))
                return
        if not self._open and not self._over:
            self._finish()

    def _finish(self) -> None:
        ended = monotonic_ns()
        asked = self._request
        started = self._started_ns
        self._queue.statistics.record_batch([asked.arrived_ns], asked.batch_size, started, started, ended, ended)
        outputs = []
        for name in self._plan.outputs:
            tensor = self._tensors[name]
            outputs.append(Tensor(name, tensor.datatype, tensor.shape, tensor.data))
        self._complete(InferResponse(self._queue.name, self._queue.version, asked.id, outputs), None)

    def fail(self, error: BacklineError) -> None:
        """Answers with an error, and gives up the steps that are under way."""
        self._queue.statistics.fail.add(1, monotonic_ns() - self._request.arrived_ns)
        self._give_up()
        self._complete(None, error)

    def cancelled(self, _: InferRequest) -> None:
        """Nobody waits for the answer any more: no further step begins, and those under way are cancelled."""
        if not self._over:
            self._queue.statistics.cancelled += 1
            self._give_up()

    def _give_up(self) -> None:
        self._over = True
        open_requests, self._open = self._open, {}
        for request in open_requests:
            request.cancel()
        self._queue.ended(self)

    def _complete(self, response: InferResponse | None, error: BacklineError | None) -> None:
        asked = self._request
        asked.on_cancel = None
        self._over = True
        self._tensors = {}
        self._queue.ended(self)
        if asked.cancelled:
            return
        try:
            asked.on_complete(asked, response, error)
        except Exception:
            log.exception("the answer of ensemble '%s' could not be delivered", self._queue.name)

    def _named(self, error: BacklineError) -> BacklineError:
        """The same failure, which says where in which ensemble; the words are Triton's."""
        named = type(error)(f"in ensemble '{self._queue.name}', {error.message}")
        named.retry_after = error.retry_after
        return named
