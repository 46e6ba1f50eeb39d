"""Loads and serves ensembles, which are ready when the models that they call are ready."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from functools import partial
from time import monotonic
from typing import Any
from uuid import uuid4

from msgspec.structs import replace

from backline.engine.config.model_config import Ensemble, ModelConfig
from backline.engine.engine import Engine, ambiguous_text
from backline.engine.model import Model, Serving
from backline.engine.request_check import DecoupledCheck, RequestCheck
from backline.engine.statistics import ResponseStatistics
from backline.lifecycle.call_graph import Node, Wait, called, node, waits_for_steps
from backline.lifecycle.loading.load_threads import LoadThreads
from backline.lifecycle.loading.loaded import Measured
from backline.lifecycle.loading.queueing import scheduling_text
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.servable import Servable, Settle
from backline.lifecycle.wanted import step_failed
from backline.schedule.cache.flight import RequestKeys
from backline.schedule.cache.queue import CachedQueue
from backline.schedule.ensembles.graph import StepModel, origins
from backline.schedule.ensembles.queue import EnsembleQueue
from backline.schedule.queues.queue import QueueSettings
from backline.schedule.version_queue import with_deadline
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.spelling import nearest
from backline_client.values.tensor import Shape


class ComposedServable(Servable):
    """One version of an ensemble. A load reads no files; it only checks the models that the steps call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """Takes the arguments of Servable."""
        super().__init__(*args, **options)
        self._engine = self._shared.engine
        self._graph = self._shared.call_graph
        #: The waits that this ensemble has added to the call graph, to be removed when it is unloaded.
        self._waits: list[Wait] = []
        self._composed: EnsembleQueue | None = None
        #: The queue that looks for a response in the cache before it runs the steps; None if the ensemble has
        #: no response cache.
        self._cached: CachedQueue | None = None
        #: The versions that the steps call.
        self._asked: tuple[Model, ...] = ()
        #: Whether a called model is unavailable; the ensemble is loaded again when all called models are
        #: available.
        self.lacking = False

    async def load(self, threads: LoadThreads, known: Measured | None, settle: Settle) -> None:
        """Loads the ensemble. Raises InvalidArgument if it cannot serve (see `unanswered_step`), if the
        tensors of its steps do not match, or if its steps could wait for each other forever.
        """
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = monotonic()
        config = self.model.config
        reason = unanswered_step(self._engine, config)
        self.lacking = bool(reason)
        if reason:
            raise InvalidArgument(reason)
        check_steps(self._engine, config, self._ensemble)
        signature = with_kinds(composed_signature(config), self._engine, self._ensemble)
        self._composed = EnsembleQueue(
            config.name,
            self.model.version,
            self._ensemble,
            signature,
            partial(self._engine.submit, direct=True),
            self.model.statistics,
            batched=bool(config.max_batch_size),
            find=self._engine.find_ready,
            turn=self._shared.turn,
        )
        model = self.model
        model.platform = "ensemble"
        model.backend = ""
        model.signature = signature
        model.max_batch_size = config.max_batch_size or 0
        if config.response_cache:
            self._keep_answers(self._composed)
        model.progress = None
        self._take_models(
            asked_models(self._engine, self._ensemble), step_models(self._engine, self._ensemble)
        )
        self._wait_for_steps()
        self.enter(VersionPhase.LOADED)
        model.statistics.load_seconds = monotonic() - began

    @property
    def _ensemble(self) -> Ensemble:
        assert self.model.config.ensemble is not None, "it is an ensemble"
        return self.model.config.ensemble

    def _keep_answers(self, queue: EnsembleQueue) -> None:
        model, cache = self.model, self._shared.cache
        self._warn_of_cache()
        if cache is not None:
            keys, settings, loop = self._keys(), QueueSettings(), asyncio.get_running_loop()
            name, version, statistics = model.name, model.version, model.statistics
            model.statistics.cached = True
            self._cached = CachedQueue(
                queue, cache, keys, settings, statistics, name=name, version=version, loop=loop
            )

    def _keys(self) -> RequestKeys:
        """Returns new cache keys for the responses, so that responses cached so far are not used again: the
        models that the ensemble calls may have changed.
        """
        return RequestKeys(self.model.name, self.model.version, f"steps {uuid4()}")

    def _take_models(self, asked: tuple[Model, ...], models: tuple[StepModel, ...]) -> None:
        """Stores which models the steps call now. If any of these models is decoupled, so is the ensemble, as
        in Triton.
        """
        assert self._composed is not None, "it is loaded"
        model = self.model
        self._asked = asked
        self._composed.update(models)
        model.decoupled = any(step.decoupled for step in models)
        if self._cached is not None:
            self._cached.answer_for(self._keys(), decoupled=model.decoupled)
        if model.decoupled != (model.statistics.responses is not None):
            model.statistics.responses = ResponseStatistics() if model.decoupled else None
        self._time_first_responses()
        model.scheduling = scheduling_text(
            model.config, 0, decoupled=model.decoupled, cached=self._cached is not None
        )
        check = RequestCheck(model.name, model.signature, model.max_batch_size, strict=True)
        model.serving = Serving(
            DecoupledCheck(model.name, check) if model.decoupled else check,
            with_deadline(self._cached or self._composed, model.config.default_deadline_seconds),
        )

    def _wait_for_steps(self) -> None:
        """Records in the call graph which decoupled steps wait for which later steps. Raises InvalidArgument
        if these waits, or waits for resources of the rate limiter, could deadlock.
        """
        config, permits = self.model.config, self._shared.permits
        self._forget_waits()
        waits = waits_of_decoupled_steps(self._engine, self._ensemble)
        cycle = self._graph.cycle(waits)
        if cycle:
            way = " -> ".join(f"'{name}' version {version}" for name, version in cycle)
            raise InvalidArgument(
                f"in ensemble {config.name}, a decoupled step would wait for later steps that wait for it,"
                f" which could deadlock under load: {way}. Copy model '{cycle[0][0]}' under another name, and"
                " let one of the steps call the copy"
            )
        if permits is not None:
            together = self._graph.together_with(waits)
            for waiting in dict.fromkeys(waiting for waiting, _ in waits):
                wanting = permits.wanting(together, waiting)
                if wanting:
                    raise InvalidArgument(
                        f"in ensemble {config.name}, model '{waiting[0]}' would wait for later steps, which"
                        f" might wait for {wanting} forever: a step keeps its resources while it waits. Give"
                        " the server more resources (--rate-limit-resource), or let instances take fewer"
                    )
        self._graph.add(waits)
        self._waits = waits

    def _forget_waits(self) -> None:
        self._graph.remove(self._waits)
        self._waits = []

    def fail(self, reason: str, retry_at: float | None) -> None:
        self._forget_waits()
        super().fail(reason, retry_at)

    def review(self) -> bool:
        """Returns whether changes to the called models take the ensemble out of service, or allow it to be
        loaded again.
        """
        if self.phase is not VersionPhase.READY and not (self.phase is VersionPhase.FAILED and self.lacking):
            return False
        config = self.model.config
        reason = unanswered_step(self._engine, config)
        if self.phase is VersionPhase.FAILED:
            return not reason
        if not reason and self._composed is not None:
            asked = asked_models(self._engine, self._ensemble)
            known = self._composed.models
            # The inputs of an unloaded model are unknown, so the description from its last load is kept.
            models = tuple(
                new if new.ranks else old
                for new, old in zip(step_models(self._engine, self._ensemble), known, strict=True)
            )
            try:
                if asked != self._asked or models != known:
                    check_steps(self._engine, config, self._ensemble)
                    self._take_models(asked, models)
                self._wait_for_steps()
            except InvalidArgument as error:
                reason = error.message
        if reason:
            self.lacking = True
            self.fail(reason, None)
        return bool(reason)

    @property
    def may_come_back(self) -> bool:
        return not unanswered_step(self._engine, self.model.config)

    @property
    def busy(self) -> bool:
        """Whether the ensemble has requests in flight."""
        return self._composed is not None and self._composed.running > 0

    def update(self, config: ModelConfig) -> None:
        """Applies a changed configuration that needs no new load."""
        self._config = self.model.config = config
        self._time_first_responses()

    async def drain(self, limit: float) -> None:
        """Waits at most `limit` seconds for requests in flight to complete, then fails those that remain."""
        queue = self._cached or self._composed
        if queue is not None:
            await queue.drain(limit)
        self._forget_waits()
        await super().drain(0)


def composed_signature(config: ModelConfig) -> Signature:
    """Returns the ensemble's signature as configured, with the batch dimension if the ensemble is batched."""
    first: Shape = (-1,) if config.max_batch_size else ()

    def full(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(spec.name, spec.datatype, (*first, *spec.shape), spec.optional, spec.labels)
            for spec in specs
        )

    return Signature(full(config.inputs), full(config.outputs))


def with_kinds(signature: Signature, engine: Engine, ensemble: Ensemble) -> Signature:
    """Returns the signature with `media` and `column` of the steps' inputs, because the steps get the files
    and columns that clients send to the ensemble. All called models must be ready.
    """
    kinds = {
        step.inputs[spec.name]: spec
        for step in ensemble.steps
        for spec in called(engine, step).signature.inputs
        if (spec.media or spec.column) and spec.name in step.inputs
    }
    inputs = tuple(
        replace(spec, media=kinds[spec.name].media, column=kinds[spec.name].column)
        if spec.name in kinds
        else replace(spec, media="", column=False)
        for spec in signature.inputs
    )
    return replace(signature, inputs=inputs)


def unanswered_step(engine: Engine, config: ModelConfig) -> str:
    """Returns why an ensemble cannot serve: it calls itself, or a called model is not ready. Returns "" if it
    can.

    The texts are Triton's, except for a suggestion for a misspelled name.
    """
    assert config.ensemble is not None, "it is an ensemble"
    cycle = _cycle(engine, config.name, config.ensemble, set())
    if cycle:
        way = " -> ".join((config.name, *cycle))
        return f"circular dependency between ensembles: {way}; ensemble '{config.name}' would wait for itself"
    names = engine.names()
    missing = sorted(config.ensemble.models - set(names))
    if missing:
        near = nearest(missing[0], names, 1)
        hint = f". Did you mean '{near[0]}'?" if near else ""
        shared = engine.ambiguous.get(missing[0])
        if shared is not None:
            hint = f". {ambiguous_text(missing[0], shared)}"
        text = f"ensemble {config.name} contains models that are not available or ambiguous"
        return f"{text}: {', '.join(missing)}{hint}"
    for step in config.ensemble.steps:
        try:
            answers = bool(engine.served_versions(step.model))
            if step.version:
                answers = engine.find(step.model, step.version).answers
        except BacklineError:
            answers = False
        depends = f"ensemble '{config.name}' depends on '{step.model}'"
        if not answers and step.version:
            return f"{depends} whose required version {step.version} is not loaded."
        if not answers:
            why = _why(engine, step.model)
            if why:
                return step_failed(config.name, step.model, why)
            return f"{depends} which has no loaded version."
    return ""


def _cycle(engine: Engine, name: str, ensemble: Ensemble, seen: set[str]) -> list[str]:
    """Returns the models on a path of calls from `ensemble` to the model `name`; empty if there is no such
    path.
    """
    for step in ensemble.steps:
        if step.model == name:
            return [name]
        try:
            asked = engine.find(step.model, step.version).config.ensemble
        except BacklineError:
            continue
        if asked is None or step.model in seen:
            continue
        seen.add(step.model)
        way = _cycle(engine, name, asked, seen)
        if way:
            return [step.model, *way]
    return []


def _why(engine: Engine, name: str) -> str:
    unserved = [model for model in engine.models() if model.name == name and model.reason]
    if not unserved:
        return ""
    return f"version {unserved[-1].version} is at UNAVAILABLE state: {unserved[-1].reason};"


def check_steps(engine: Engine, config: ModelConfig, ensemble: Ensemble) -> None:
    """Raises InvalidArgument, in Triton's words, if the tensors of steps and models do not match.

    All called models must be ready. An on-demand model that was never loaded is not checked, because its
    signature is unknown.
    """
    name = config.name
    signature = composed_signature(config)
    seen = {
        spec.name: (spec, name, bool(config.max_batch_size))
        for spec in (*signature.inputs, *signature.outputs)
    }
    for step in ensemble.steps:
        model = called(engine, step)
        if model.on_demand and not model.signature.outputs:
            continue
        limited = model.max_batch_size and not model.config.split_large_batches
        if limited and model.max_batch_size < (config.max_batch_size or 0):
            raise InvalidArgument(
                f"ensemble {name} allows maximum batch size {config.max_batch_size}, but it contains model"
                f" {step.model} which only allows maximum batch size to be {model.max_batch_size}"
            )
        inputs = {spec.name: spec for spec in model.signature.inputs}
        outputs = {spec.name: spec for spec in model.signature.outputs}
        _check_tensors(name, model, step.inputs, inputs, seen, "to non-existing input")
        _check_tensors(name, model, step.outputs, outputs, seen, "from non-existing output")
        missing = [
            spec.name for spec in inputs.values() if not spec.optional and spec.name not in step.inputs
        ]
        if missing:
            raise InvalidArgument(
                f"in ensemble {name}, no ensemble tensor is mapping to required input {missing[0]} in model"
                f" {step.model}"
            )
    _check_origins(engine, config, ensemble)


def _check_origins(engine: Engine, config: ModelConfig, ensemble: Ensemble) -> None:
    """Raises InvalidArgument if tensors from different decoupled steps meet in the inputs of one step, or in
    one response. They cannot be paired, because the steps may send different numbers of responses.
    """
    decoupled = [index for index, step in enumerate(ensemble.steps) if called(engine, step).decoupled]
    try:
        found = origins(ensemble, decoupled)
    except InvalidArgument as error:
        raise InvalidArgument(f"in ensemble {config.name}, {error.message}") from None
    if len({found.get(output.name, ()) for output in config.outputs}) > 1:
        reason = f"step of model '{config.name}' receives inputs originated from different decoupled models"
        raise InvalidArgument(f"in ensemble {config.name}, {reason}")


def step_models(engine: Engine, ensemble: Ensemble) -> tuple[StepModel, ...]:
    """Returns what scheduling needs to know about the model of each step, in the order of the steps. All
    models must be ready.
    """
    return tuple(
        StepModel(
            model.decoupled,
            model.max_batch_size > 0,
            {spec.name: len(spec.shape) for spec in model.signature.inputs},
        )
        for model in (called(engine, step) for step in ensemble.steps)
    )


def asked_models(engine: Engine, ensemble: Ensemble) -> tuple[Model, ...]:
    """Returns the versions that the steps call now, directly or through ensembles. All must be ready."""
    asked: list[Model] = []
    for step in ensemble.steps:
        model = called(engine, step)
        asked.append(model)
        if model.config.ensemble is not None:
            asked += asked_models(engine, model.config.ensemble)
    return tuple(asked)


def waits_of_decoupled_steps(engine: Engine, ensemble: Ensemble) -> list[Wait]:
    """Returns the waits of decoupled steps, whose runs pause while later steps process the responses."""
    models = [called(engine, step) for step in ensemble.steps]
    found = origins(ensemble, [index for index, model in enumerate(models) if model.decoupled])
    waits: list[Wait] = []
    for step, awaited in zip(ensemble.steps, models, strict=True):
        before = {index for tensor in step.inputs.values() for index in found.get(tensor, ())}
        for waiting in (one for index in sorted(before) for one in _decoupled_in(engine, models[index])):
            waits += [(waiting, node(awaited)), *waits_for_steps(engine, awaited)]
    return list(dict.fromkeys(waits))


def _decoupled_in(engine: Engine, model: Model) -> list[Node]:
    """Returns the nodes that produce a decoupled model's responses: in an ensemble, the decoupled steps."""
    ensemble = model.config.ensemble
    if ensemble is None:
        return [node(model)] if model.decoupled else []
    return [one for step in ensemble.steps for one in _decoupled_in(engine, called(engine, step))]


_Seen = dict[str, tuple[TensorSpec, str, bool]]


def _check_tensors(
    ensemble: str,
    model: Model,
    mapped: Mapping[str, str],
    specs: Mapping[str, TensorSpec],
    seen: _Seen,
    what: str,
) -> None:
    for name, tensor in mapped.items():
        spec = specs.get(name)
        if spec is None:
            direction = f"mapping {what}" if what.startswith("to") else f"mapped {what}"
            raise InvalidArgument(
                f"in ensemble {ensemble}, ensemble tensor {tensor} is {direction} {name} in model"
                f" {model.name}"
            )
        other, inferred, batched = seen.setdefault(tensor, (spec, model.name, model.max_batch_size > 0))
        where = f"in ensemble {ensemble}, ensemble tensor {tensor}: inconsistent"
        if other.datatype is not spec.datatype:
            raise InvalidArgument(
                f"{where} data type: {other.datatype.config_name} is inferred from model {inferred} while"
                f" {spec.datatype.config_name} is inferred from model {model.name}"
            )
        plain, own = (
            shape[1:] if batch else shape
            for shape, batch in ((other.shape, batched), (spec.shape, model.max_batch_size > 0))
        )
        if not _fits(other.shape, spec.shape) and not _fits(plain, own):
            raise InvalidArgument(
                f"{where} shape: {_dims(other.shape)} is inferred from model {inferred} while"
                f" {_dims(spec.shape)} is inferred from model {model.name}"
            )


def _fits(one: Shape, other: Shape) -> bool:
    return len(one) == len(other) and all(a == b or -1 in (a, b) for a, b in zip(one, other, strict=True))


def _dims(shape: Shape) -> str:
    return f"[{','.join(map(str, shape))}]"
