"""Loads a model file and decides how to serve it, by the kind of model that the backend returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from msgspec.structs import replace

from backline.backends.backend import (
    DEFAULT_OPTIONS,
    BackendModel,
    HostedModel,
    LoadedModel,
    LoadOptions,
    SelfServing,
    StreamingModel,
    gpus_of,
    runs_here,
    streams,
)
from backline.backends.plugin import BackendPlugin
from backline.backends.registry import choose
from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Device, Gpus, PlacedGroup, Places
from backline.lifecycle.loading.instances import asks_for_devices, place
from backline.lifecycle.loading.loaded import LoadedVersion, Measured, loaded_streams, loaded_workers
from backline.lifecycle.loading.loaded_here import loaded_here, measure_model, measure_spread
from backline.lifecycle.loading.trial_runs import Samples
from backline.lifecycle.view.arrays import Arrange
from backline.lifecycle.view.view import View
from backline.repository.configuration.effects import ignored_settings
from backline.workers.model_in_workers import ModelInWorkers
from backline_client.values.errors import InvalidArgument

#: Where a runtime reads a file: in a worker process that the model always has ("worker"), in a worker process
#: because its lane is `process`, or in this process.
_Home: TypeAlias = Literal["worker", "process", "here"]
#: The module that loads a RuntimeJob in a worker process.
_RUNTIME_ADAPTER: Final = "backline.lifecycle.loading.isolation.runtime_model"


class NeedsWorkers(InvalidArgument):
    """Raised when a model needs worker processes, and the host has none."""


class LoadHost:
    """What a load asks of the program that it runs in. The methods are called on the thread of the load.

    This class is the simplest host: it has no worker processes, remembers no measurements and shows nobody
    how far a load is.
    """

    def on_phase(self, phase: str) -> None:
        """Called when a phase of the load begins: "environment", "load", "probe" or "warm-up"."""

    def on_bytes(self, done: int, total: int) -> None:
        """Called while packages for the model's environment are downloaded, with the bytes so far."""

    def start_workers(self, hosted: HostedModel, placed: Places) -> tuple[ModelInWorkers, ModelConfig]:
        """Starts the workers of a model on the given devices, and waits until they have loaded the model.
        Also returns the configuration, which the model may have completed. Raises BacklineError.
        """
        raise NeedsWorkers(f"'{hosted.path}' needs worker processes, which are not available here")

    def recall(self, placed: Places) -> Measured | None:
        """Returns the measurements that an earlier process made on the same devices, if any."""
        return None


def load(
    path: Path,
    config: ModelConfig,
    known: Measured | None = None,
    host: LoadHost | None = None,
    options: LoadOptions = DEFAULT_OPTIONS,
    samples: Samples = (),
) -> LoadedVersion:
    """Loads a model file, tests whether it can be batched, and measures its run time.

    If `known` has the measurements of an earlier load of the same files and configuration, or the host
    recalls some, only a lone run on several cores may still be timed. The model should accept the `samples`,
    so trial runs use them first. The device of `options` is ignored. Loading may take minutes: call this on a
    thread. Raises BacklineError when the model cannot be served.
    """
    host = host or LoadHost()
    host.on_phase("load")
    one = _FileLoad(path, config, known, host, options, samples)
    model = one.load_on(one.placed.devices[0])
    serve = next(serve for is_one, serve in _KINDS if is_one(model))
    return serve(one, model)


class _FileLoad:
    """The load of one file: where its runtime reads it, on which devices, and the view that clients get."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        known: Measured | None,
        host: LoadHost,
        options: LoadOptions,
        samples: Samples,
    ) -> None:
        self.path, self.known, self.host, self.options, self.samples = path, known, host, options, samples
        self.entry = choose(config, path)
        self.backend = self.entry.backend()
        self.home = _home(self.entry, config)
        if self.home == "worker" and config.lane == "process":
            config = replace(config, lane=None)  # such models run in worker processes in every lane
        self.ignored = ignored_settings(config, self.home)
        if self.home == "worker":
            config = replace(config, lane=None)
        elif self.home == "process":
            # The server's instance threads wait for the worker process.
            config = replace(config, lane="thread")
        self.config = config
        self._gpus = gpus_of(self.backend, path, config) if asks_for_devices(config) else Gpus()
        self.placed = self.place(config)
        self.view = View(config, path)
        #: The workers that read the file, if its home is "process".
        self.pools: list[ModelInWorkers] = []

    def place(self, config: ModelConfig) -> Places:
        return place(config, self._gpus, strict=self.options.strict_devices)

    def load_on(self, device: Device) -> BackendModel:
        options = replace(self.options, device=device)
        if self.home != "process":
            return self.backend.load(self.path, self.view.inner, options)
        job = _runtime_job(self.path, self.view.inner, options)
        pool, _ = self.host.start_workers(job, _one_worker(self.config, device))
        self.pools.append(pool)
        return pool


def _home(entry: BackendPlugin, config: ModelConfig) -> _Home:
    if entry.hosted:
        return "worker"
    if config.lane != "process":
        return "here"
    if not entry.runtime:
        where = config.source or config.name
        raise InvalidArgument(
            f"{where}: lane is process, but models of the {entry.name} backend run in the server's process:"
            " choose inline or thread"
        )
    return "process"


def _serve_itself(one: _FileLoad, model: SelfServing) -> LoadedVersion:
    served: LoadedVersion = model.serve(one.config, one.view, one.placed)
    return served


def _serve_in_workers(one: _FileLoad, model: HostedModel) -> LoadedVersion:
    one.view.stage(Arrange).refuse("Python models")
    placed = one.placed
    if model.groups and not one.config.instance_groups:
        placed = one.place(replace(one.config, instance_groups=model.groups))
    workers, config = one.host.start_workers(model, placed)
    return loaded_workers(config, one.path, workers, backend=one.backend.name, warnings=one.ignored)


def _serve_streams(one: _FileLoad, model: StreamingModel) -> LoadedVersion:
    view, entry = one.view, one.entry
    try:
        view.stage(Arrange).refuse("streams")
        return loaded_streams(
            one.config,
            view,
            view.wrap(model),
            backend=one.backend.name,
            platform=entry.platform,
            placed=one.placed,
        )
    except BaseException:
        model.close()
        raise


def _serve_here(one: _FileLoad, model: LoadedModel) -> LoadedVersion:
    config, view, options = one.config, one.view, one.options
    first, *others = one.placed.devices
    loaded = [model]
    try:
        replicas = {first: view.wrap(model)}
        for device in others:
            replica = one.load_on(device)
            assert runs_here(replica), "the models on all devices are of one kind"
            loaded.append(replica)
            replicas[device] = view.wrap(replica)
        view.fit(replicas[first].signature)
        known = one.known or one.host.recall(one.placed)
        measured = known
        if measured is None:
            one.host.on_phase("probe")
            measured = measure_model(config, view, replicas[first], one.samples, options.run_cores)
        else:
            # Other work on the machine may have prevented this part of the measurement.
            measured = measure_spread(
                config, view, replicas[first], measured, samples=one.samples, run_cores=options.run_cores
            )
        version = loaded_here(
            config,
            view,
            replicas,
            backend=one.backend.name,
            platform=one.entry.platform,
            placed=one.placed,
            measured=measured,
            warnings=one.ignored,
            pools=tuple(one.pools),
            run_cores=options.run_cores,
        )
        return version if known is None else version.make_first_runs(one.samples)
    except BaseException:
        for each in loaded:
            each.close()
        raise


#: How each kind of model that a backend may return is served. The first kind that fits counts.
_KINDS: Final[tuple[tuple[Callable[[Any], bool], Callable[[_FileLoad, Any], LoadedVersion]], ...]] = (
    (lambda model: isinstance(model, SelfServing), _serve_itself),
    (lambda model: isinstance(model, HostedModel), _serve_in_workers),
    (streams, _serve_streams),
    (runs_here, _serve_here),
)


def _runtime_job(path: Path, config: ModelConfig, options: LoadOptions) -> HostedModel:
    """Returns what a worker needs to load a file with its runtime."""
    # Imported late, because few servers have models of this kind.
    from backline.lifecycle.loading.isolation.messages import RuntimeJob, encode_job

    job = RuntimeJob(path, replace(config, declared=b""), options)
    return HostedModel(path, _RUNTIME_ADAPTER, job=encode_job(job))


def _one_worker(config: ModelConfig, device: Device) -> Places:
    return Places((PlacedGroup(0, config.name, InstanceGroup(1), (device,)),))
