"""The queue of an ensemble. It serves each request by sending requests to other models."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from time import monotonic

from backline.engine.config.model_config import Ensemble
from backline.engine.model import Model
from backline.engine.statistics import ModelStatistics
from backline.engine.ticket import Ticket
from backline.schedule.ensembles.graph import EnsemblePlan, StepModel, plan_ensemble
from backline.schedule.ensembles.run import EnsembleRun, FittedRun, UnaryRun
from backline.schedule.ensembles.stacked import StackedRun, queue_at_once
from backline.schedule.ensembles.stream import StreamRun
from backline.schedule.queues.queue import being_unloaded
from backline.schedule.turn import Turn
from backline_client.values.errors import BacklineError
from backline_client.values.signature import Signature

#: The maximum number of plans that are kept. There is a plan for each set of outputs, and clients usually
#: request only a few different sets.
_KEPT_PLANS = 64
#: The default limit for the number of requests in flight of each step that follows a decoupled step, for a
#: single request to the ensemble.
_MAX_INFLIGHT = 64


class EnsembleQueue:
    """Runs the requests of a version of an ensemble. All methods must be called on the event loop.

    In this queue, a step waits only if it follows a decoupled step and its turn has not come. All other
    requests of steps wait in the queues of the steps' models, where they are batched with other requests.
    `submit` is Engine.submit. Tensors are passed between steps without copies. The request of each step has
    the id, parameters, priority, sequence, timeout and deadline of the ensemble's request.

    If the models of all steps run on the event loop, the requests of a turn that may share a batch go through
    the steps together at the end of the turn, as one request with none of these properties; see StackedRun.
    `find` is Engine.find_ready.
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
        find: Callable[[str, str], Model],
        turn: Turn | None = None,
    ) -> None:
        """Creates the queue. `signature` has the inputs and outputs of the ensemble. `update` must be called
        to set the models of the steps.
        """
        self.name = name
        self.version = version
        self.submit_step = submit
        self.find = find
        self.turn = turn or Turn()
        self.statistics = statistics
        #: The statistics of the calls to each step's model.
        self.calls = tuple(statistics.calls[step.model] for step in ensemble.steps)
        self.models: tuple[StepModel, ...] = (StepModel(),) * len(ensemble.steps)
        self.max_inflight = ensemble.max_inflight or _MAX_INFLIGHT
        #: The ensemble itself, described like the model of a step, so that the outputs of the ensemble can be
        #: adapted in the same way as the outputs of a step.
        self.itself = StepModel(
            batched=batched, ranks={spec.name: len(spec.shape) for spec in signature.outputs}
        )
        self._ensemble = ensemble
        self._outputs = tuple(spec.name for spec in signature.outputs)
        #: Whether some of the models have a batch dimension and others do not, so that tensors must be
        #: adapted.
        self.mixed = False
        self._decoupled: frozenset[int] = frozenset()
        #: For each set of requested outputs, the class that runs requests for these outputs, and the plan.
        self._plans: dict[tuple[str, ...], tuple[type[EnsembleRun], EnsemblePlan]] = {}
        self._runs: set[EnsembleRun | StackedRun] = set()
        #: The runs that other requests of this turn may join, by requested outputs and batch key.
        self._gathering: dict[object, StackedRun] = {}
        self._drained: asyncio.Future[None] | None = None

    @property
    def pending(self) -> int:
        """The number of queued requests: always 0, because steps wait in the queues of their models."""
        return 0

    @property
    def running(self) -> int:
        """The number of requests whose steps are running or waiting."""
        return sum([run.requests for run in self._runs])

    def update(self, models: tuple[StepModel, ...]) -> None:
        """Sets the models with which new requests are planned. Requests in flight keep their plans."""
        self.models = models
        self.mixed = len({model.batched for model in (*models, self.itself)}) > 1
        self._decoupled = frozenset(index for index, model in enumerate(models) if model.decoupled)
        self._plans.clear()

    def submit(self, ticket: Ticket) -> None:
        """Starts the first steps of a request, or lets the request wait for others until the end of the turn.

        Raises BacklineError if a step is refused immediately, for example because a queue is full.
        """
        outputs = ticket.request.outputs or self._outputs
        kind, plan = self._plans.get(outputs) or self._plan(outputs)
        if kind is not UnaryRun or not self._joins(ticket, plan):
            self._start(kind(self, ticket, plan))

    def _start(self, run: EnsembleRun) -> None:
        self._runs.add(run)
        run.start()

    def _joins(self, ticket: Ticket, plan: EnsemblePlan) -> bool:
        """Adds a request to a StackedRun. Returns False if the request must go through the steps by itself:
        because the ensemble takes no batches, because several steps have the same model or the request is a
        step of another ensemble (such steps may share batches), because the request is traced, belongs to a
        sequence or has expired, because responses are counted one by one, or because the models of the steps
        cannot run all its items together.
        """
        if (
            not self.itself.batched
            or plan.repeats
            or ticket.trace is not None
            or ticket.request.sequence is not None
            or ticket.compute is not None
            or self.statistics.responses is not None
            or (ticket.deadline is not None and ticket.deadline <= monotonic())
        ):
            return False
        key = plan.outputs, ticket.batch_key
        run = self._gathering.get(key)
        if run is None or ticket.batch_size > run.room:
            most = self._most_together(plan)
            if ticket.batch_size > most:
                return False
            run = StackedRun(self, plan, key, most)
            self._gathering[key] = run
            self._runs.add(run)
            self.turn.soon(run.start, asyncio.get_running_loop())
        run.join(ticket)
        return True

    def _most_together(self, plan: EnsemblePlan) -> int:
        """Returns the maximum number of items that may go through the steps together; 0 if some of the models
        cannot run them immediately or must not run them together (see `queue_at_once`).
        """
        most = sys.maxsize
        for planned in plan.steps:
            try:
                queue = queue_at_once(self.find(planned.step.model, planned.step.version))
            except BacklineError:
                return 0
            most = min(most, 0 if queue is None else queue.most_at_once)
            if not most:
                break
        return most

    def gathered(self, key: object, run: StackedRun) -> None:
        """Prevents further requests from joining a run."""
        if self._gathering.get(key) is run:
            del self._gathering[key]

    def run_apart(self, tickets: Iterable[Ticket], plan: EnsemblePlan) -> None:
        """Starts a separate run for each request, because their StackedRun failed."""
        first = self.turn.begin_completions()
        for ticket in tickets:
            if ticket.cancelled:
                continue
            try:
                self._start(UnaryRun(self, ticket, plan))
            except BacklineError as error:
                ticket.complete(None, error)
        if first:
            self.turn.end_completions(asyncio.get_running_loop())

    async def drain(self, limit: float) -> None:
        """Waits at most `limit` seconds for running requests to complete, then fails the requests that have
        not completed.

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

    def ended(self, run: EnsembleRun | StackedRun) -> None:
        """Removes a run whose requests have all completed, failed or been cancelled."""
        self._runs.discard(run)
        if not self._runs and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
