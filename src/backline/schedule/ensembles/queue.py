"""The queue of an ensemble: each request becomes requests to other models, which run as soon as their tensors are there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backline.engine.ensemble import Ensemble
from backline.engine.signature import Signature
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.ensembles.graph import EnsemblePlan, StepModel, plan_ensemble
from backline.schedule.ensembles.run import EnsembleRun, FittedRun, UnaryRun
from backline.schedule.ensembles.stream import StreamRun
from backline.schedule.queues.queue import being_unloaded
from backline.schedule.turn import Turn

#: Sets of outputs whose plans are kept; clients ask for few.
_KEPT_PLANS = 64
#: Requests to a step behind a decoupled one that are under way for one request, where the configuration does not say.
_MAX_INFLIGHT = 64


class EnsembleQueue:
    """Runs the requests of one version of an ensemble. Lives on the event loop.

    Nothing waits here but for its turn behind a decoupled step: a step waits in the queue of its model, where it is joined with whatever
    else that model is asked. `submit` is Engine.submit. Tensors go from step to step as they are. What the request says besides its
    tensors, its id, parameters, priority, sequence, timeout and deadline, each step's request says too.
    """

    def __init__(
        self,
        name: str,
        version: str,
        ensemble: Ensemble,
        signature: Signature,
        submit: Callable[[Ticket], None],
        statistics: ModelStatistics,
        *,
        batched: bool,
        turn: Turn | None = None,
    ) -> None:
        """`signature` has the ensemble's own inputs and outputs. What is known of the models of its steps is told by `update`."""
        self.name = name
        self.version = version
        self.submit_step = submit
        self.turn = turn or Turn()
        self.statistics = statistics
        #: Where the requests of each step are counted.
        self.calls = tuple(statistics.calls_of(step.model) for step in ensemble.steps)
        self.models: tuple[StepModel, ...] = (StepModel(),) * len(ensemble.steps)
        self.max_inflight = ensemble.max_inflight or _MAX_INFLIGHT
        #: As which its outputs are answered.
        self.itself = StepModel(
            batched=batched, ranks={spec.name: len(spec.shape) for spec in signature.outputs}
        )
        self._ensemble = ensemble
        self._outputs = tuple(spec.name for spec in signature.outputs)
        #: Whether only some of its models have batches, so that tensors have to be fitted in between.
        self.mixed = False
        self._decoupled: frozenset[int] = frozenset()
        #: By the outputs that are asked for, the way of a request, and its plan.
        self._plans: dict[tuple[str, ...], tuple[type[EnsembleRun], EnsemblePlan]] = {}
        self._runs: set[EnsembleRun] = set()
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """Requests that wait: none does here."""
        return 0

    @property
    def running(self) -> int:
        """Requests of which steps run or wait."""
        return len(self._runs)

    def update(self, models: tuple[StepModel, ...]) -> None:
        """From now on requests are planned for these models; those under way go on as they were."""
        self.models = models
        self.mixed = len({model.batched for model in (*models, self.itself)}) > 1
        self._decoupled = frozenset(index for index, model in enumerate(models) if model.decoupled)
        self._plans.clear()

    def submit(self, ticket: Ticket) -> None:
        """Starts the first steps. Raises BacklineError when one of them is refused at once, as by a full queue."""
        kind, plan = self._plans.get(ticket.request.outputs or self._outputs) or self._plan(
            ticket.request.outputs or self._outputs
        )
        run = kind(self, ticket, plan)
        self._runs.add(run)
        run.start()

    async def drain(self, limit: float) -> None:
        """Lets the requests that run end, for at most `limit` seconds; then they fail. Nothing may be submitted any more."""
        if self._runs:
            self._drained = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._drained,), timeout=limit)
        for run in tuple(self._runs):
            run.fail(being_unloaded(self.name))

    def _plan(self, outputs: tuple[str, ...]) -> tuple[type[EnsembleRun], EnsemblePlan]:
        if len(self._plans) >= _KEPT_PLANS:
            self._plans.clear()
        plan = plan_ensemble(self._ensemble, outputs, self._decoupled)
        kind = StreamRun if plan.chain else FittedRun if self.mixed else UnaryRun
        self._plans[outputs] = kind, plan
        return kind, plan

    def ended(self, run: EnsembleRun) -> None:
        """A request is done, in whatever way."""
        self._runs.discard(run)
        if not self._runs and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
