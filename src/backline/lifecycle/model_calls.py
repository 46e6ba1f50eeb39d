"""What models in worker processes ask of the server: other models, through the engine, and changes, through its control."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from backline.engine.control import Control, Overrides
from backline.engine.engine import Engine, Model
from backline.engine.errors import Unsupported
from backline.engine.messages import InferRequest
from backline.engine.signature import TensorSpec
from backline.workers.process.calls import Outcome
from backline.workers.process.protocol import Described, Spec


class ModelCalls:
    """The calls of one model version; fits workers.process.calls.Calls. Lives on the event loop."""

    def __init__(self, engine: Engine, caller: Model) -> None:
        self._engine = engine
        self._caller = caller

    def submit(self, request: InferRequest) -> None:
        """See Calls."""
        self._engine.submit_call(request)

    def record(self, called: str, outcome: Outcome, ns: int) -> None:
        """See Calls."""
        self._caller.statistics.record_call(called, outcome, ns)

    def is_ready(self, model: str, version: str) -> bool:
        """See Calls."""
        return self._engine.is_ready(model, version) if model else self._engine.ready

    async def describe(self, model: str, version: str) -> Described:
        """See Calls."""
        engine = self._engine
        if engine.is_unknown(model, version):
            await engine.wake(model, version)
        found = engine.find_ready(model, version)
        signature = found.signature
        platform = found.platform or found.backend
        return Described(engine.served_versions(model), platform, _specs(signature.inputs), _specs(signature.outputs))

    async def load(self, model: str, version: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """See Calls."""
        overrides = Overrides(config, files) if config is not None or files else None
        await self._control.load(model, version, overrides=overrides, who=self._who)

    async def unload(self, model: str, version: str, *, dependents: bool) -> None:
        """See Calls."""
        await self._control.unload(model, version, dependents=dependents, who=self._who)

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
    return [Spec(spec.name, spec.datatype.name, list(spec.shape), spec.optional) for spec in specs]
