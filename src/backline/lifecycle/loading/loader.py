"""One load: from a model file to a model that can be served, and the decision how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

from backline.backends.backend import LoadedModel, StreamingModel, gpus_of
from backline.backends.hosted import HostedModel
from backline.backends.registry import choose
from backline.engine.device import CPU, Gpus, Place, Places, name_devices
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.joining import Joining
from backline.engine.model_config import Lane, ModelConfig
from backline.engine.signature import Signature
from backline.lifecycle.loading.batch_probe import BatchProbe, probe_batching
from backline.lifecycle.loading.device_load import load_on_devices
from backline.lifecycle.loading.joined import (
    JoinedModel,
    as_clients_see,
    joining_of_workers,
    make_joiner,
    probe_joining,
)
from backline.lifecycle.loading.placing import asks_for_devices, place
from backline.lifecycle.loading.placing import place_again as still_placed
from backline.lifecycle.loading.run_time import LARGEST_BATCH, RunTimes, measure, plan
from backline.lifecycle.loading.sequence_states import visible
from backline.repository.configuration.effects import ignored_settings
from backline.system.cores import format_cores, usable_cores
from backline.workers.joiner import Joiner
from backline.workers.model_in_workers import ModelInWorkers

Tried = TypeVar("Tried", bound=LoadedModel)
#: Starts the workers of a model where they are placed and returns when they have loaded it, with the configuration that it has, which the
#: model may have completed. Called on a thread. Raises BacklineError with the reason.
StartWorkers: TypeAlias = Callable[[HostedModel, Places], tuple[ModelInWorkers, ModelConfig]]


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
    #: The devices that the model was loaded on, and the instances there.
    placed: Places
    places: tuple[Place, ...]
    reason: str
    measured: Measured
    warnings: tuple[str, ...] = ()
    #: How requests are joined, where it is not enough to put them one after the other; and what does it, where the model does not.
    joining: Joining | None = None
    joiner: Joiner | None = None
    #: How long a batch may wait for more, in microseconds, where the configuration does not say.
    max_queue_delay_us: int = 0

    @property
    def instances(self) -> int:
        """How many there are."""
        return len(self.places)


def load(
    path: Path,
    config: ModelConfig,
    known: Measured | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
    start_workers: StartWorkers | None = None,
) -> Loaded:
    """Loads a model file, proves whether it can be batched where the configuration does not say, and measures how it runs best.

    `known` is what an earlier load of the same files under the same configuration measured: it is not measured again. `on_phase` is called
    with "load" and "probe" when that begins. `start_workers` is for models that run in other processes. Takes as long as it takes: to be
    called on a thread. Raises BacklineError with the reason when the model cannot be served.
    """
    on_phase("load")
    entry = choose(config, path)
    backend = entry.backend()
    if config.lane == "process":
        if not entry.hosted:
            where = config.source or config.name
            raise InvalidArgument(
                f"{where}: models of the {entry.name} backend run in the server's process: lane is inline or thread"
            )
        config = replace(config, lane=None)  # it says what is so anyway
    ignored = ignored_settings(config, "worker" if entry.hosted else "here")
    if entry.hosted:
        config = replace(config, lane=None)
    gpus = gpus_of(backend, path, config) if asks_for_devices(config) else Gpus()
    placed = place(config, gpus)
    model = load_on_devices(path, backend, config, placed.devices)
    if isinstance(model, HostedModel):
        if start_workers is None:
            raise InvalidArgument(
                f"'{path}': models of the {backend.name} backend run in worker processes, which there are none of here"
            )
        if model.groups and not config.instance_groups:
            placed = place(replace(config, instance_groups=model.groups), gpus)
        workers, config = start_workers(model, placed)
        return _place_workers(config, workers, backend.name, ignored)
    if isinstance(model, StreamingModel):
        return _place_streams(config, model, backend.name, backend.platform, placed)
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
    warnings = model.warnings + ignored + _missing(config, placed)
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
        placed=placed,
    )


def _missing(config: ModelConfig, placed: Places) -> tuple[str, ...]:
    """That it runs on the CPU although it was to be on a GPU."""
    return (
        (f"{config.source or config.name}: {placed.missing}: it runs on the CPU",) if placed.missing else ()
    )


def _measured(config: ModelConfig, model: Tried, probe: Callable[[Tried], BatchProbe]) -> Measured:
    found = probe(model) if config.max_batch_size != 0 else None
    return Measured(found, measure(model, _max_batch_size(config, found)))


def place_again(loaded: Loaded, config: ModelConfig) -> Loaded:
    """The same model, run as a configuration asks for that differs from the one of its load in what needs no load: its instances."""
    if isinstance(loaded.model, ModelInWorkers):
        # As many workers as were started.
        return replace(loaded, batch_limit=_joined_by_workers(config, loaded.model))
    placed = still_placed(config, loaded.placed)
    if isinstance(loaded.model, StreamingModel):
        return _place_streams(config, loaded.model, loaded.backend, loaded.platform, placed)
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
        placed=placed,
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
    placed: Places,
) -> Loaded:
    on_gpus = any(device.kind == "gpu" for device in placed.devices)
    assert config.lane != "process", "it is loaded here"
    chosen = plan(
        measured.times,
        cores=len(config.cpus) or usable_cores(),
        threads_per_run=model.threads_per_run,
        # The event loop can neither be left alone in a run that takes too long, nor be kept to some cores, nor wait for a device.
        lane=config.lane
        or ("thread" if config.execution_timeout_seconds is not None or config.cpus or on_gpus else None),
        instances=len(placed.spread()) if placed.counted or on_gpus else None,
        max_batch=max_batch_size,
    )
    why_batched = (
        "max_batch_size of the configuration is 0" if measured.probe is None else measured.probe.reason
    )
    return Loaded(
        model,
        backend,
        platform,
        signature,
        max_batch_size,
        max_batch_size if config.dynamic_batching or config.sequence else chosen.batch_limit,
        chosen.lane,
        placed,
        placed.spread(chosen.instances)[: chosen.instances],
        f"{why_batched}; {chosen.reason}{_kept_to(config)}{_why_there(placed)}",
        measured,
        warnings,
        None if joiner is None else joiner.joining,
        joiner,
    )


def _place_streams(
    config: ModelConfig, model: StreamingModel, backend: str, platform: str, placed: Places
) -> Loaded:
    """A model of which each request is a stream on a thread: there are no batches, and no run that could be measured."""
    return Loaded(
        model,
        backend,
        platform,
        _with_labels(model.signature, config),
        max_batch_size=0,
        batch_limit=0,
        lane="thread",
        placed=placed,
        places=placed.spread(model.streams_at_once),
        reason="a request gets any number of responses, which are made on a thread",
        measured=Measured(None, RunTimes({})),
        warnings=model.warnings + ignored_settings(config, "stream") + _missing(config, placed),
    )


def _why_there(placed: Places) -> str:
    if placed.missing:
        return f"; on the CPU: {placed.missing}"
    return "" if placed.devices == (CPU,) else f"; on {name_devices(placed)}"


def _kept_to(config: ModelConfig) -> str:
    return (
        f"; kept to core{'s' if len(config.cpus) > 1 else ''} {format_cores(config.cpus)}"
        if config.cpus
        else ""
    )


def _place_workers(
    config: ModelConfig, model: ModelInWorkers, backend: str, ignored: tuple[str, ...]
) -> Loaded:
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
        placed=model.placed,
        places=model.places,
        reason=model.where + _kept_to(config) + _why_there(model.placed),
        measured=Measured(None, RunTimes({})),
        warnings=model.warnings + ignored + _missing(config, model.placed),
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
    advice = (
        "Set max_batch_size to 0"
        if config.joining is None
        else "Correct how requests are joined (padding, cut, batch_input)"
    )
    return (
        f"{config.source or config.name}: max_batch_size is {config.max_batch_size}, but joining requests changes answers: {probe.reason}."
        f" {advice} unless you know better"
    )


def _with_labels(signature: Signature, config: ModelConfig) -> Signature:
    """The signature, with the names of classes that the configuration gives to outputs."""
    labels = {spec.name: spec.labels for spec in config.outputs if spec.labels}
    if not labels:
        return signature
    return replace(
        signature,
        outputs=tuple(replace(spec, labels=labels.get(spec.name, ())) for spec in signature.outputs),
    )
