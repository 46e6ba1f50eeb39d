"""One load: from a model file to a model that can be served, and the decision how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from backline.backends.agreement import agree
from backline.backends.arrangement import ArrangedModel, is_arranged
from backline.backends.backend import Backend, LoadedModel, StreamingModel
from backline.backends.hosted import HostedModel
from backline.backends.registry import choose
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.joining import Joining
from backline.engine.model_config import Lane, ModelConfig
from backline.engine.signature import Signature
from backline.lifecycle.batch_probe import BatchProbe, probe_batching
from backline.lifecycle.cores import usable_cores
from backline.lifecycle.joined import JoinedModel, as_clients_see, as_the_model_sees, joining_of_workers, make_joiner, probe_joining
from backline.lifecycle.run_time import LARGEST_BATCH, RunTimes, measure, plan
from backline.lifecycle.sequence_states import visible, with_hidden_tensors
from backline.workers.affinity import format_cores
from backline.workers.joiner import Joiner
from backline.workers.model_in_workers import ModelInWorkers

Tried = TypeVar("Tried", bound=LoadedModel)
#: Starts the workers of a model and returns when they have loaded it, with the configuration that it has, which the model may have
#: completed. Called on a thread. Raises BacklineError with the reason.
StartWorkers: TypeAlias = Callable[[HostedModel], tuple[ModelInWorkers, ModelConfig]]


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found out by running a model: it holds for another load of the same files. `probe` is None where batches were not wanted."""

    probe: BatchProbe | None
    times: RunTimes


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory, and how it is to be served.

    `max_batch_size` is what requests may ask for (0: no dimension is a batch), `batch_limit` how many items the scheduler joins.
    """

    model: LoadedModel | StreamingModel | ModelInWorkers
    backend: str
    platform: str
    signature: Signature
    max_batch_size: int
    batch_limit: int
    lane: Lane | Literal["process", "debug"]
    instances: int
    reason: str
    measured: Measured
    warnings: tuple[str, ...] = ()
    #: How requests are joined, where it is not enough to put them one after the other; and what does it, where the model does not.
    joining: Joining | None = None
    joiner: Joiner | None = None
    #: How long a batch may wait for more, in microseconds, where the configuration does not say.
    max_queue_delay_us: int = 0


def load(
    path: Path,
    config: ModelConfig,
    known: Measured | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
    start_workers: StartWorkers | None = None,
) -> Loaded:
    """Loads a model file, proves whether it can be batched where the configuration does not say, and measures how it runs best.

    `known` is what an earlier load of the same files under the same configuration measured: it is not measured again. `on_phase` is called
    with "load" and "probe" when that begins. `start_workers` is for
    models that run in other processes. Takes as long as it takes: to be called on a thread. Raises BacklineError with the reason when the
    model cannot be served.
    """
    on_phase("load")
    backend = choose(config, path)
    if is_arranged(config):
        model: LoadedModel | StreamingModel | HostedModel = _arranged(path, backend, config)
    else:
        model = backend.load(path, as_the_model_sees(with_hidden_tensors(config)))
    if isinstance(model, HostedModel):
        if start_workers is None:
            raise InvalidArgument(f"'{path}': models of the {backend.name} backend run in worker processes, which there are none of here")
        workers, config = start_workers(model)
        return _place_workers(config, workers, backend.name)
    if isinstance(model, StreamingModel):
        return _place_streams(config, model, backend.name, backend.platform)
    try:
        joiner = make_joiner(config, model.signature)
    except BacklineError:
        model.close()
        raise
    signature = as_clients_see(visible(model.signature, config), config)
    if known is None:
        on_phase("probe")
        if joiner is None:
            known = _measured(config, model, probe_batching)
        else:
            known = _measured(config, JoinedModel(model, joiner, signature), probe_joining)
    warnings = model.warnings
    if config.max_batch_size and known.probe is not None and not known.probe.batched:
        warnings += (_batched_against_proof(config, known.probe),)
    return _place(
        config,
        model=model,
        backend=backend.name,
        platform=backend.platform,
        signature=_with_labels(signature, config),
        max_batch_size=_max_batch_size(config, known.probe),
        measured=known,
        warnings=warnings,
        joiner=joiner,
    )


def _measured(config: ModelConfig, model: Tried, probe: Callable[[Tried], BatchProbe]) -> Measured:
    found = probe(model) if config.max_batch_size != 0 else None
    return Measured(found, measure(model, _max_batch_size(config, found)))


def _arranged(path: Path, backend: Backend, config: ModelConfig) -> LoadedModel:
    """The model as its configuration arranges it: the backend loads what the file says."""
    model = backend.load(path, replace(config, inputs=(), outputs=(), max_batch_size=None))
    if isinstance(model, HostedModel):
        raise InvalidArgument(f"model '{config.name}': {config.source} gives batch_axis or constant_input, which Python models do not take")
    if isinstance(model, StreamingModel):
        model.close()
        raise InvalidArgument(f"model '{config.name}': {config.source} gives batch_axis or constant_input, which streams do not take")
    try:
        arranged = ArrangedModel(model, config)
        arranged.signature = agree(path, arranged.signature, as_the_model_sees(with_hidden_tensors(config)))
    except BacklineError:
        model.close()
        raise
    return arranged


def place_again(loaded: Loaded, config: ModelConfig) -> Loaded:
    """The same model, run as a configuration asks for that differs from the one of its load in what needs no load: its instances."""
    if isinstance(loaded.model, ModelInWorkers):
        # As many workers as were started.
        return replace(loaded, batch_limit=_joined_by_workers(config, loaded.model))
    if isinstance(loaded.model, StreamingModel):
        return _place_streams(config, loaded.model, loaded.backend, loaded.platform)
    return _place(
        config,
        model=loaded.model,
        backend=loaded.backend,
        platform=loaded.platform,
        signature=loaded.signature,
        max_batch_size=loaded.max_batch_size,
        measured=loaded.measured,
        warnings=loaded.warnings,
        joiner=loaded.joiner,
    )


def _place(
    config: ModelConfig,
    *,
    model: LoadedModel,
    backend: str,
    platform: str,
    signature: Signature,
    max_batch_size: int,
    measured: Measured,
    warnings: tuple[str, ...],
    joiner: Joiner | None,
) -> Loaded:
    chosen = plan(
        measured.times,
        cores=len(config.cpus) or usable_cores(),
        threads_per_run=model.threads_per_run,
        # The event loop can neither be left alone in a run that takes too long, nor be kept to some cores.
        lane=config.lane or ("thread" if config.execution_timeout_seconds is not None or config.cpus else None),
        instances=config.instance_count,
        max_batch=max_batch_size,
    )
    why_batched = "max_batch_size of the configuration is 0" if measured.probe is None else measured.probe.reason
    return Loaded(
        model,
        backend,
        platform,
        signature,
        max_batch_size,
        max_batch_size if config.dynamic_batching or config.sequence else chosen.batch_limit,
        chosen.lane,
        chosen.instances,
        f"{why_batched}; {chosen.reason}{_kept_to(config)}",
        measured,
        warnings,
        None if joiner is None else joiner.joining,
        joiner,
    )


def _place_streams(config: ModelConfig, model: StreamingModel, backend: str, platform: str) -> Loaded:
    """A model of which each request is a stream on a thread: there are no batches, and no run that could be measured."""
    return Loaded(
        model,
        backend,
        platform,
        _with_labels(model.signature, config),
        max_batch_size=0,
        batch_limit=0,
        lane="thread",
        instances=config.instance_count or model.streams_at_once,
        reason="a request gets any number of responses, which are made on a thread",
        measured=Measured(None, RunTimes({})),
        warnings=model.warnings + _untimed(config),
    )


def _kept_to(config: ModelConfig) -> str:
    return f"; kept to core{'s' if len(config.cpus) > 1 else ''} {format_cores(config.cpus)}" if config.cpus else ""


def _untimed(config: ModelConfig) -> tuple[str, ...]:
    if config.execution_timeout_seconds is None:
        return ()
    return (f"{config.source or config.name}: execution_timeout_seconds has no effect on a model of the backend {config.backend}",)


def _place_workers(config: ModelConfig, model: ModelInWorkers, backend: str) -> Loaded:
    """A model in worker processes, which says itself what it takes."""
    loaded = model.loaded
    try:
        joining = joining_of_workers(config, model)
    except BacklineError:
        model.close()
        raise
    return Loaded(
        model,
        backend,
        loaded.platform,
        _with_labels(as_clients_see(visible(model.signature, config), config), config),
        max_batch_size=loaded.max_batch_size,
        batch_limit=_joined_by_workers(config, model),
        lane="debug" if model.debugged else "process",
        instances=len(model.pids),
        reason=model.where + _kept_to(config),
        measured=Measured(None, RunTimes({})),
        warnings=model.warnings,
        joining=joining,
        max_queue_delay_us=loaded.max_queue_delay_us or 0,
    )


def _joined_by_workers(config: ModelConfig, model: ModelInWorkers) -> int:
    """How many items the scheduler joins: a model may rely on being given one request at a time unless it asks for more."""
    loaded = model.loaded
    alone = loaded.joined_if_asked and not config.dynamic_batching and config.sequence is None
    return min(1, loaded.max_batch_size) if alone else loaded.max_batch_size


def _max_batch_size(config: ModelConfig, probe: BatchProbe | None) -> int:
    if config.max_batch_size is not None:
        return config.max_batch_size
    return LARGEST_BATCH if probe is not None and probe.batched else 0


def _batched_against_proof(config: ModelConfig, probe: BatchProbe) -> str:
    advice = "Set max_batch_size to 0" if config.joining is None else "Correct how requests are joined (padding, cut, batch_input)"
    return (
        f"{config.source or config.name}: max_batch_size is {config.max_batch_size}, but joining requests changes answers: {probe.reason}."
        f" {advice} unless you know better"
    )


def _with_labels(signature: Signature, config: ModelConfig) -> Signature:
    """The signature, with the names of classes that the configuration gives to outputs."""
    labels = {spec.name: spec.labels for spec in config.outputs if spec.labels}
    if not labels:
        return signature
    return replace(signature, outputs=tuple(replace(spec, labels=labels.get(spec.name, ())) for spec in signature.outputs))
