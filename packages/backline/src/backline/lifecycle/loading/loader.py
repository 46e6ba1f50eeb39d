"""Loads a model file and decides how to serve it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeAlias

from msgspec.structs import replace

from backline.backends.backend import (
    DEFAULT_OPTIONS,
    BackendModel,
    HostedModel,
    LoadOptions,
    SelfServing,
    gpus_of,
    runs_here,
    streams,
)
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

#: Starts the workers of a model on the given devices, and waits until they have loaded the model. Also
#: returns the configuration, which the model may have completed. Called on a thread. Raises BacklineError.
StartWorkers: TypeAlias = Callable[[HostedModel, Places], tuple[ModelInWorkers, ModelConfig]]
#: The module that loads a RuntimeJob in a worker process.
_RUNTIME_ADAPTER: Final = "backline.lifecycle.loading.isolation.runtime_model"


def load(
    path: Path,
    config: ModelConfig,
    known: Measured | None = None,
    on_phase: Callable[[str], None] = lambda _: None,
    start_workers: StartWorkers | None = None,
    options: LoadOptions = DEFAULT_OPTIONS,
    samples: Samples = (),
    recall: Callable[[Places], Measured | None] = lambda _: None,
) -> LoadedVersion:
    """Loads a model file, tests whether it can be batched, and measures its run time.

    If `known` has the measurements of an earlier load of the same files and configuration, or `recall`
    returns measurements that an earlier process made on the same devices, only a lone run on several cores
    may still be timed. The model should accept the `samples`, so trial runs use them first. `on_phase` is
    called with "load" and "probe" when these phases begin. `start_workers` is needed for models that run in
    worker processes. The device of `options` is ignored. Loading may take minutes: call this on a thread.
    Raises BacklineError when the model cannot be served.
    """
    on_phase("load")
    entry = choose(config, path)
    backend = entry.backend()
    isolated = config.lane == "process" and not entry.hosted
    if isolated and not entry.runtime:
        where = config.source or config.name
        raise InvalidArgument(
            f"{where}: lane is process, but models of the {entry.name} backend run in the server's process:"
            " choose inline or thread"
        )
    if entry.hosted and config.lane == "process":
        config = replace(config, lane=None)  # such models run in worker processes in every lane
    ignored = ignored_settings(config, "worker" if entry.hosted else "process" if isolated else "here")
    if entry.hosted:
        config = replace(config, lane=None)
    elif isolated:
        config = replace(config, lane="thread")  # the server's instance threads wait for the worker process
    gpus = gpus_of(backend, path, config) if asks_for_devices(config) else Gpus()
    placed = place(config, gpus, strict=options.strict_devices)
    view = View(config, path)

    pools: list[ModelInWorkers] = []

    def load_on(device: Device) -> BackendModel:
        if not isolated:
            return backend.load(path, view.inner, replace(options, device=device))
        job = _runtime_job(path, view.inner, replace(options, device=device))
        if start_workers is None:
            raise _no_workers(path, backend.name)
        pool, _ = start_workers(job, _one_worker(config, device))
        pools.append(pool)
        return pool

    first, *others = placed.devices
    model = load_on(first)
    if isinstance(model, SelfServing):
        served: LoadedVersion = model.serve(config, view, placed)
        return served
    if isinstance(model, HostedModel):
        view.stage(Arrange).refuse("Python models")
        if start_workers is None:
            raise _no_workers(path, backend.name)
        if model.groups and not config.instance_groups:
            placed = place(replace(config, instance_groups=model.groups), gpus, strict=options.strict_devices)
        workers, config = start_workers(model, placed)
        return loaded_workers(config, path, workers, backend=backend.name, warnings=ignored)
    if streams(model):
        try:
            view.stage(Arrange).refuse("streams")
            return loaded_streams(
                config, view, view.wrap(model), backend=backend.name, platform=entry.platform, placed=placed
            )
        except BaseException:
            model.close()
            raise
    assert runs_here(model), "the other kinds of models have been handled"
    loaded = [model]
    try:
        replicas = {first: view.wrap(model)}
        for device in others:
            replica = load_on(device)
            assert runs_here(replica), "the models on all devices are of one kind"
            loaded.append(replica)
            replicas[device] = view.wrap(replica)
        view.fit(replicas[first].signature)
        known = known or recall(placed)
        measured = known
        if measured is None:
            on_phase("probe")
            measured = measure_model(config, view, replicas[first], samples, options.run_cores)
        else:
            # Other work on the machine may have prevented this part of the measurement.
            measured = measure_spread(
                config, view, replicas[first], measured, samples=samples, run_cores=options.run_cores
            )
        version = loaded_here(
            config,
            view,
            replicas,
            backend=backend.name,
            platform=entry.platform,
            placed=placed,
            measured=measured,
            warnings=ignored,
            pools=tuple(pools),
            run_cores=options.run_cores,
        )
        return version if known is None else version.make_first_runs(samples)
    except BaseException:
        for one in loaded:
            one.close()
        raise


def _no_workers(path: Path, backend: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{path}': the {backend} backend needs worker processes, which are not available here"
    )


def _runtime_job(path: Path, config: ModelConfig, options: LoadOptions) -> HostedModel:
    """Returns what a worker needs to load a file with its runtime."""
    # Imported late, because few servers have models of this kind.
    from backline.lifecycle.loading.isolation.messages import RuntimeJob, encode_job

    job = RuntimeJob(path, replace(config, declared=b""), options)
    return HostedModel(path, _RUNTIME_ADAPTER, job=encode_job(job))


def _one_worker(config: ModelConfig, device: Device) -> Places:
    return Places((PlacedGroup(0, config.name, InstanceGroup(1), (device,)),))
