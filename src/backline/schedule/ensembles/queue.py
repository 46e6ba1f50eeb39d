"""The queue of an ensemble, which turns each request into requests to other models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from backline.engine.config.model_config import Ensemble
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.engine.values.signature import Signature
from backline.schedule.ensembles.graph import EnsemblePlan, StepModel, plan_ensemble
from backline.schedule.ensembles.run import EnsembleRun, FittedRun, UnaryRun
from backline.schedule.ensembles.stream import StreamRun
from backline.schedule.queues.queue import being_unloaded
from backline.schedule.turn import Turn

#: The maximum number of plans kept, one per set of outputs; clients request only a few different sets.
_KEPT_PLANS = 64
#: The default limit for the requests to a step after a decoupled one that are in flight for one request to
#: the ensemble.
_MAX_INFLIGHT = 64


class EnsembleQueue:
    """Runs the requests of one version of an ensemble. All methods must be called on the event loop.

    A request waits here only for its turn after a decoupled step. Otherwise each step waits in the queue of
    its model, where it is batched with other requests to that model. `submit` is Engine.submit. Tensors pass
    between steps without copies. The request of each step has the id, parameters, priority, sequence, timeout
    and deadline of the ensemble's request.
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
        """`signature` has the ensemble's inputs and outputs. `update` sets the models of the steps."""
        self.name = name
        self.version = version
        self.submit_step = submit
        self.turn = turn or Turn()
        self.statistics = statistics
        #: The call statistics of each step.
        self.calls = tuple(statistics.calls[step.model] for step in ensemble.steps)
        self.models: tuple[StepModel, ...] = (StepModel(),) * len(ensemble.steps)
        self.max_inflight = ensemble.max_inflight or _MAX_INFLIGHT
        #: Describes the ensemble like the model of a step, so that the outputs of the ensemble can be adapted
        #: like those of a step.
        self.itself = StepModel(
            batched=batched, ranks={spec.name: len(spec.shape) for spec in signature.outputs}
        )
        self._ensemble = ensemble
        self._outputs = tuple(spec.name for spec in signature.outputs)
        #: Whether only some of the models have a batch dimension, so that tensors must be adapted.
        self.mixed = False
        self._decoupled: frozenset[int] = frozenset()
        #: For each set of requested outputs, the class that runs such requests, and their plan.
        self._plans: dict[tuple[str, ...], tuple[type[EnsembleRun], EnsemblePlan]] = {}
        self._runs: set[EnsembleRun] = set()
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """The number of queued requests: always 0, because steps wait in the queues of their models."""
        return 0

    @property
    def running(self) -> int:
        """The number of requests that have steps running or waiting."""
        return len(self._runs)

    def update(self, models: tuple[StepModel, ...]) -> None:
        """Plans new requests with these models. Requests in flight keep their plans."""
        self.models = models
        self.mixed = len({model.batched for model in (*models, self.itself)}) > 1
        self._decoupled = frozenset(index for index, model in enumerate(models) if model.decoupled)
        self._plans.clear()

    def submit(self, ticket: Ticket) -> None:
        """Starts the first steps of a request. Raises BacklineError if a step is refused at once, for example
        because a queue is full.
        """
        outputs = ticket.request.outputs or self._outputs
        kind, plan = self._plans.get(outputs) or self._plan(outputs)
        run = kind(self, ticket, plan)
        self._runs.add(run)
        run.start()

    async def drain(self, limit: float) -> None:
        """Lets running requests finish within `limit` seconds, then fails the rest.

        Nothing may be submitted after this call.
        """
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
        """Forgets a request that has completed, failed or been cancelled."""
        self._runs.discard(run)
        if not self._runs and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
