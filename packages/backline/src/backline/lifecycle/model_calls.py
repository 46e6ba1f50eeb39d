"""Serves the requests that models in worker processes make: inference, loads, unloads and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.ticket import Ticket
from backline.lifecycle.call_graph import CallGraph, Wait, node, waits_for_steps
from backline.schedule.rate_limit.permits import Permits
from backline.workers.channel.calls import Outcome
from backline.workers.channel.protocol import Described, Measure, Spec
from backline_client.values.control import Control, Overrides
from backline_client.values.errors import Internal, InvalidArgument, Unsupported
from backline_client.values.signature import TensorSpec


class ModelCalls:
    """Serves the calls that one version makes to the server. Implements workers.channel.calls.Calls. Use it
    only on the event loop.
    """

    def __init__(self, engine: Engine, graph: CallGraph, permits: Permits | None, caller: Model) -> None:
        """`permits` is None if the server has no rate limiter."""
        self._engine = engine
        self._graph = graph
        self._permits = permits
        self._caller = caller
        self._waits: dict[Ticket, list[Wait]] = {}

    def submit(self, ticket: Ticket) -> None:
        """Submits a call. Raises Internal if the call closes a cycle of waiting models, or if the called
        model might wait for resources that the caller holds, and the errors of Engine.find_ready and
        Engine.submit.

        If the models have several instances, a cycle would deadlock only under load. Such a call is refused
        in any case, because an error that always occurs is easier to find.
        """
        request = ticket.request
        name = self._name(request.model_name)
        if name != request.model_name:
            request = ticket.request = replace(request, model_name=name)
        waits: list[Wait] = []
        for called in self._engine.candidates(name, request.model_version):
            waits += [(node(self._caller), node(called)), *waits_for_steps(self._engine, called)]
        cycle = self._graph.cycle(waits)
        if cycle:
            way = " -> ".join(f"'{name}' version {version}" for name, version in cycle)
            raise Internal(f"the call would close a cycle of waiting models: {way}")
        if self._permits is not None:
            self._check_resources(self._permits, name, waits)
        self._graph.add(waits)
        self._waits[ticket] = waits
        self._engine.submit(ticket)

    def _check_resources(self, permits: Permits, called: str, waits: list[Wait]) -> None:
        wanting = permits.wanting(self._graph.together_with(waits), node(self._caller))
        if wanting:
            raise Internal(
                f"model '{self._caller.name}' would wait for model '{called}', which might wait for"
                f" {wanting} forever: a caller keeps its resources while it waits. Give the server more"
                " resources (--rate-limit-resource), or let instances take fewer"
            )

    def ended(self, ticket: Ticket, outcome: Outcome, ns: int) -> None:
        self._graph.remove(self._waits.pop(ticket, ()))
        self._caller.statistics.record_call(ticket.request.model_name, outcome, ns)

    def is_ready(self, model: str, version: str) -> bool:
        return self._engine.is_ready(self._name(model), version) if model else self._engine.ready

    async def describe(self, model: str, version: str) -> Described:
        engine, model = self._engine, self._name(model)
        if engine.is_unknown(model, version):
            await engine.wake(model, version)
        found = engine.find_ready(model, version)
        signature = found.signature
        platform = found.platform or found.backend
        return Described(
            engine.served_versions(model), platform, _specs(signature.inputs), _specs(signature.outputs)
        )

    async def load(self, model: str, version: str, config: str | None, files: Mapping[str, bytes]) -> None:
        overrides = Overrides(config, files) if config is not None or files else None
        await self._control.load(self._name(model), version, overrides=overrides, who=self._who)

    async def unload(self, model: str, version: str, *, dependents: bool) -> None:
        await self._control.unload(self._name(model), version, dependents=dependents, who=self._who)

    def measure(self, message: Measure) -> float | None:
        metrics = self._engine.custom_metrics
        match message.action:
            case "declare":
                if not message.kind:
                    raise InvalidArgument(f"metric '{message.name}' is declared without a kind")
                metrics.declare(self, message.name, message.kind, message.description)
            case "create":
                metrics.sample(message.name, message.labels, message.bounds)
            case "increment":
                metrics.increment(message.name, message.labels, message.value)
            case "set":
                metrics.set(message.name, message.labels, message.value)
            case "observe":
                metrics.observe(message.name, message.labels, message.bounds, message.value)
            case "value":
                return metrics.sample(message.name, message.labels).value
        return None

    def forget(self) -> None:
        self._engine.custom_metrics.forget(self)

    def _name(self, model: str) -> str:
        """Returns the name under which the model is served that the caller names `model`."""
        return self._engine.name_for(self._caller.name, model)

    @property
    def _control(self) -> Control:
        control = self._engine.control
        if control is None:
            raise Unsupported("the models of this server cannot be changed by request")
        return control

    @property
    def _who(self) -> str:
        return f"model '{self._caller.name}' version {self._caller.version}"


def _specs(specs: Iterable[TensorSpec]) -> list[Spec]:
    return [
        Spec(
            spec.name,
            spec.datatype.name,
            list(spec.shape),
            spec.optional,
            json=spec.json,
            column=spec.column,
        )
        for spec in specs
    ]
