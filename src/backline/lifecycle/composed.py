"""Versions of models that consist of others: an ensemble has no file, and is ready when the models are that it asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Executor as Threads
from time import monotonic
from typing import Any, Protocol

from backline.engine.engine import Engine, Model
from backline.engine.ensemble import Ensemble
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.messages import InferRequest
from backline.engine.model_config import ModelConfig
from backline.engine.signature import RequestCheck, Signature, TensorSpec
from backline.engine.tensor import Shape
from backline.lifecycle.loader import Measured
from backline.lifecycle.plan import Phase
from backline.lifecycle.servable import Servable
from backline.schedule.ensemble import EnsembleQueue


class ComposedQueue(Protocol):
    """What answers the requests of a composed model."""

    @property
    def pending(self) -> int: ...

    @property
    def running(self) -> int: ...

    def submit(self, request: InferRequest) -> None: ...

    async def drain(self, limit: float) -> None: ...


class ComposedServable(Servable):
    """One version of an ensemble. Nothing is read from its files and no thread is taken: loading it is a look at the models it asks."""

    def __init__(self, engine: Engine, *args: Any, **options: Any) -> None:
        """As a Servable, with the engine that the steps ask."""
        super().__init__(*args, **options)
        self._engine = engine
        self._composed: ComposedQueue | None = None
        #: It does not answer because a model that it asks does not: it is tried again when that has changed.
        self.lacking = False

    async def load(self, threads: Threads, known: Measured | None) -> None:
        """Raises InvalidArgument when its steps do not fit each other, or a model that it asks is not there."""
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = monotonic()
        config = self.model.config
        assert config.ensemble is not None, "it is an ensemble"
        reason = unanswered_step(self._engine, config)
        self.lacking = bool(reason)
        if reason:
            raise InvalidArgument(reason)
        check_steps(self._engine, config, config.ensemble)
        signature = composed_signature(config)
        names = tuple(spec.name for spec in signature.outputs)
        queue = EnsembleQueue(config.name, self.model.version, config.ensemble, names, self._engine.submit, self.model.statistics)
        self._open(queue, signature, platform="ensemble")
        self.model.statistics.load_seconds = monotonic() - began

    def _open(self, queue: ComposedQueue, signature: Signature, *, platform: str) -> None:
        model = self.model
        self._composed = queue
        model.platform = platform
        model.backend = ""
        model.signature = signature
        model.max_batch_size = model.config.max_batch_size or 0
        model.check = RequestCheck(model.name, signature, model.max_batch_size, strict=True)
        model.queue = queue
        model.progress = None
        self.phase = Phase.LOADED

    def review(self) -> bool:
        """Whether what it asks has changed so that it must be taken out of service, which is done, or be loaded again."""
        if self.phase is not Phase.READY and not (self.phase is Phase.FAILED and self.lacking):
            return False
        reason = unanswered_step(self._engine, self.model.config)
        if self.phase is Phase.FAILED:
            return not reason
        if reason:
            self.lacking = True
            self.fail(reason, None)
        return bool(reason)

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return self._composed is not None and self._composed.running > 0

    def update(self, config: ModelConfig) -> None:
        """Takes a configuration that differs in what needs no load."""
        self.model.config = config

    async def drain(self, limit: float) -> None:
        """Finishes what it has, for at most `limit` seconds."""
        if self._composed is not None:
            await self._composed.drain(limit)
        await super().drain(0)


def composed_signature(config: ModelConfig) -> Signature:
    """Inputs and outputs with full shapes, as the configuration names them."""
    first: Shape = (-1,) if config.max_batch_size else ()

    def full(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels) for spec in specs)

    return Signature(full(config.inputs), full(config.outputs))


def unanswered_step(engine: Engine, config: ModelConfig) -> str:
    """Why an ensemble cannot answer: the first of its steps' models that does not; empty when all do. The words are Triton's."""
    assert config.ensemble is not None, "it is an ensemble"
    names = engine.names()
    missing = sorted(config.ensemble.models - set(names))
    if missing:
        return f"ensemble {config.name} contains models that are not available or ambiguous: {', '.join(missing)}"
    for step in config.ensemble.steps:
        try:
            answers = engine.find(step.model, step.version).answers if step.version else bool(engine.served_versions(step.model))
        except BacklineError:
            answers = False
        if not answers and step.version:
            return f"ensemble '{config.name}' depends on '{step.model}' whose required version {step.version} is not loaded."
        if not answers:
            return f"ensemble '{config.name}' depends on '{step.model}' which has no loaded version. {_why(engine, step.model)}".rstrip()
    return ""


def _why(engine: Engine, name: str) -> str:
    reasons = [f"Version {model.version}: {model.reason}" for model in engine.models() if model.name == name and model.reason]
    return reasons[-1] if reasons else ""


def check_steps(engine: Engine, config: ModelConfig, ensemble: Ensemble) -> None:
    """Raises InvalidArgument where steps and their models do not fit: names, datatypes, shapes, batch sizes. The words are Triton's.

    All of its models answer. Of one that was never loaded, as it is on demand, nothing is known yet: its requests are checked when they
    come.
    """
    name = config.name
    signature = composed_signature(config)
    seen = {spec.name: (spec, name, bool(config.max_batch_size)) for spec in (*signature.inputs, *signature.outputs)}
    for step in ensemble.steps:
        model = _model(engine, step.model, step.version)
        if model.decoupled:
            raise InvalidArgument(
                f"ensemble '{name}' contains model {step.model}, which gives any number of responses; that is not supported in ensembles:"
                " ask it from the client, or from a program, by a stream"
            )
        if model.on_demand and not model.signature.outputs:
            continue
        if model.max_batch_size < (config.max_batch_size or 0) and model.max_batch_size:
            raise InvalidArgument(
                f"ensemble {name} allows maximum batch size {config.max_batch_size}, but it contains model {step.model} which only allows"
                f" maximum batch size to be {model.max_batch_size}"
            )
        inputs = {spec.name: spec for spec in model.signature.inputs}
        outputs = {spec.name: spec for spec in model.signature.outputs}
        _check_tensors(name, model, step.inputs, inputs, seen, "to non-existing input")
        _check_tensors(name, model, step.outputs, outputs, seen, "from non-existing output")
        missing = [spec.name for spec in inputs.values() if not spec.optional and spec.name not in step.inputs]
        if missing:
            raise InvalidArgument(f"in ensemble {name}, no ensemble tensor is mapping to required input {missing[0]} in model {step.model}")


def _model(engine: Engine, name: str, version: str) -> Model:
    return engine.find_ready(name, version or engine.served_versions(name)[-1])


_Seen = dict[str, tuple[TensorSpec, str, bool]]


def _check_tensors(ensemble: str, model: Model, mapped: Mapping[str, str], specs: Mapping[str, TensorSpec], seen: _Seen, what: str) -> None:
    for name, tensor in mapped.items():
        spec = specs.get(name)
        if spec is None:
            direction = f"mapping {what}" if what.startswith("to") else f"mapped {what}"
            raise InvalidArgument(f"in ensemble {ensemble}, ensemble tensor {tensor} is {direction} {name} in model {model.name}")
        other, inferred, batched = seen.setdefault(tensor, (spec, model.name, model.max_batch_size > 0))
        where = f"in ensemble {ensemble}, ensemble tensor {tensor}: inconsistent"
        if other.datatype is not spec.datatype:
            raise InvalidArgument(
                f"{where} data type: {other.datatype.config_name} is inferred from model {inferred} while"
                f" {spec.datatype.config_name} is inferred from model {model.name}"
            )
        if not _fits(other.shape, spec.shape) and (len(other.shape) == len(spec.shape) or batched == (model.max_batch_size > 0)):
            raise InvalidArgument(
                f"{where} shape: {_dims(other.shape)} is inferred from model {inferred} while {_dims(spec.shape)} is inferred from model"
                f" {model.name}"
            )


def _fits(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _dims(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"


def composed_of(config: ModelConfig) -> frozenset[str]:
    """The names of the models that a model asks; of most, none."""
    return config.ensemble.models if config.ensemble is not None else frozenset()
