"""Models that run in worker processes: from a backend's description to a pool that serves."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import cache
from math import inf
from pathlib import Path

from backline.backends.hosted import HostedModel
from backline.engine.device import Places
from backline.engine.errors import InvalidArgument, Unavailable
from backline.engine.joining import Joining
from backline.engine.model import Model
from backline.engine.model_config import ModelConfig
from backline.engine.signature import TensorSpec
from backline.lifecycle.calls.model_calls import ModelCalls
from backline.lifecycle.loading.completion import Completion, read_completion
from backline.lifecycle.loading.sequence_states import with_hidden_tensors
from backline.lifecycle.loading.shared import Shared
from backline.protos import message, to_plain
from backline.repository.configuration.defaults import fill_defaults, fill_places
from backline.repository.walk import walk
from backline.workers.environments.packed import PARAMETER, packed_environment
from backline.workers.environments.requirements import Requirements, find_requirements
from backline.workers.environments.store import Environment, Environments, User, default_folder
from backline.workers.environments.uv import OnBytes, Uv
from backline.workers.process.command import WorkerCommand
from backline.workers.process.pool import PoolOptions, WorkerPool
from backline.workers.process.protocol import Load, Spec

log = logging.getLogger("backline.lifecycle")

_BACKEND = "python"


class WorkerStarter:
    """Starts the workers of one version, in an environment of the model's own where it asks for one.

    `folder` is the model's, above its versions. `on_phase` is called with "environment" when one has to be built, `on_bytes` while its
    packages are downloaded.
    """

    def __init__(
        self,
        shared: Shared,
        model: Model,
        config: ModelConfig,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        on_phase: Callable[[str], None],
        on_bytes: OnBytes,
    ) -> None:
        self._config = config
        self._version = model.version
        self._folder = folder
        self._loop = loop
        self._may_complete = not shared.options.complete_configs
        #: A model that is debugged runs in this process.
        self._debugged = config.name == shared.options.debugged_model
        self._environments = _environments(default_folder(shared.options.cache_folder))
        self._on_phase = on_phase
        self._on_bytes = on_bytes
        self.calls = ModelCalls(shared.engine, shared.call_graph, shared.permits, model)
        #: What the model has completed of its configuration, once it is started.
        self.completion: Completion | None = None
        self._starting: Future[None] | None = None
        self._uv: Uv | None = None
        self._cancelled = False

    def start(self, hosted: HostedModel, placed: Places) -> tuple[WorkerPool, ModelConfig]:
        """See StartWorkers (loader). A model completes its configuration in a worker that ends then."""
        if hosted.packed is not None:
            from backline.repository.unpacked import unpacked

            hosted = replace(
                hosted,
                path=unpacked(hosted.path, self._environments.folder.parent / "unpacked", hosted.packed),
            )
        if given := self._config.parameters.get(PARAMETER):
            packed = packed_environment(given, self._folder, self._environments.folder.parent / "packed")
            hosted = replace(
                hosted, python=str(packed.python), environment={**packed.variables, **hosted.environment}
            )
        config = self._config
        remembers = config.sequence is not None and not config.sequence.states
        options = PoolOptions(config.execution_timeout_seconds, config.idempotent, remembers)
        environment = self._environment(hosted)
        if self._debugged:
            self._check_debugged(hosted, environment)
            from backline.workers.process.debugged import DebuggedWorker

            options, placed = (
                PoolOptions(inf, idempotent=False, remembers=remembers, worker=DebuggedWorker),
                _only_one(placed),
            )
        pool = self._start(
            self._command(hosted, environment, placed, complete=self._may_complete), options, placed
        )
        if not pool.loaded.completed:
            return pool, config
        pool.close()
        self.completion = read_completion(pool.loaded.completed, config.name, walk(self._folder))
        self._config = config = self.completion.apply(config)
        return self._start(self._command(hosted, environment, placed), options, placed), config

    def _start(self, command: WorkerCommand, options: PoolOptions, placed: Places) -> WorkerPool:
        pool = WorkerPool(command, options, self._loop, placed, self.calls)
        starting = asyncio.run_coroutine_threadsafe(pool.start(), self._loop)
        self._starting = starting
        if self._cancelled:
            starting.cancel()
        try:
            starting.result()
        except CancelledError:
            raise Unavailable(f"the load of {pool.label} was given up") from None
        return pool

    def cancel(self) -> None:
        """The model is not wanted any more: nobody waits for its workers. Called on the event loop."""
        self._cancelled = True
        if self._starting is not None:
            self._starting.cancel()
        if self._uv is not None:
            self._uv.cancel()

    def _check_debugged(self, hosted: HostedModel, environment: Environment | None) -> None:
        from backline.workers.environments.borrowed import borrow

        label = f"model '{self._config.name}'"
        if hosted.python is not None:
            raise InvalidArgument(
                f"{label} brings its own Python, '{hosted.python}', and cannot be debugged in the server's process"
            )
        others = [] if environment is None else borrow(environment)
        if others:
            log.warning(
                "%s is debugged with packages of the server that its environment has in other versions: %s",
                label,
                ", ".join(others),
            )

    def _environment(self, hosted: HostedModel) -> Environment | None:
        """The environment that the files beside the model ask for, built if need be; None where they ask for none."""
        if hosted.python is not None:
            return None
        folder = hosted.path if hosted.path.is_dir() else hosted.path.parent
        requirements = find_requirements(folder, self._folder, self._config.python)
        if requirements is None:
            return None
        for ignored in requirements.ignored:
            log.warning(
                "model '%s': '%s' is not looked at, %s beside it goes first",
                self._config.name,
                ignored,
                requirements.file,
            )
        user = User(self._config.name, str(folder), str(self._folder), self._config.python)
        while (environment := self._environments.find(requirements, user)) is None:
            self._build(requirements, user)
        return environment

    def _build(self, requirements: Requirements, user: User) -> None:
        self._on_phase("environment")
        self._uv = uv = Uv()
        if self._cancelled:
            uv.cancel()
        log.info(
            "model '%s' version %s: its environment is built from %s",
            self._config.name,
            self._version,
            requirements.source,
        )
        try:
            self._environments.build(
                requirements, uv, user, on_bytes=self._on_bytes, stop=lambda: self._cancelled
            )
        finally:
            self._uv = None
        self._on_phase("load")

    def _command(
        self, hosted: HostedModel, environment: Environment | None, placed: Places, *, complete: bool = False
    ) -> WorkerCommand:
        config = with_hidden_tensors(self._config)
        load = Load(
            hosted.adapter,
            config.name,
            self._version,
            str(hosted.path),
            str(self._folder),
            max_batch_size=config.max_batch_size,
            inputs=[_spec(spec) for spec in config.inputs],
            outputs=[_spec(spec) for spec in config.outputs],
            parameters={**config.parameters, **hosted.parameters},
            configuration=_whole(self._config, hosted.path.name, placed),
            complete=complete,
            joining=_sendable(config.joining),
        )
        python = hosted.python or sys.executable
        variables = hosted.environment
        if environment is not None:
            python, variables = str(environment.python), {**environment.variables, **variables}
        return WorkerCommand(load, python, variables, config.memory_limit_bytes, config.cpus)


@cache
def _environments(folder: Path) -> Environments:
    """The one store of this process for a folder: it keeps what the models have."""
    return Environments(folder)


def _sendable(joining: Joining | None) -> Joining | None:
    if joining is None:
        return None
    return replace(
        joining, scattered=dict(joining.scattered), padding=dict(joining.padding), cuts=dict(joining.cuts)
    )


def _spec(spec: TensorSpec) -> Spec:
    reshape = None if spec.reshape is None else list(spec.reshape)
    return Spec(spec.name, spec.datatype.name, list(spec.shape), spec.optional, reshape)


def _only_one(placed: Places) -> Places:
    """The first instance alone."""
    first = placed.groups[0]
    return replace(
        placed, groups=(replace(first, group=replace(first.group, count=1), devices=first.devices[:1]),)
    )


def _whole(config: ModelConfig, filename: str, placed: Places) -> str:
    """The configuration with its defaults, as JSON."""
    whole = message("inference.ModelConfig").FromString(config.declared)
    whole.backend = config.backend or _BACKEND
    whole.max_batch_size = config.max_batch_size or 0
    fill_places(whole, placed)
    fill_defaults(whole, config.name, filename)
    return json.dumps(to_plain(whole), ensure_ascii=False)
