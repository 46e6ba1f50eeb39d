"""Starts models in worker processes: builds the environment, starts the pool, completes the configuration."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from backline.backends.backend import HostedModel
from backline.engine.config.joining import Joining
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Places
from backline.engine.model import Model
from backline.environments.packed import PARAMETER, packed_environment
from backline.environments.requirements import Requirements, find_requirements
from backline.environments.store import Environment, Environments, User, borrow, default_folder
from backline.environments.uv import Uv
from backline.lifecycle.loading.loader import LoadHost
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.model_calls import ModelCalls
from backline.lifecycle.view.view import STAGES_OF_WORKERS, View
from backline.repository.configuration.checks import check
from backline.repository.configuration.completion import code_may_complete, fill_defaults, fill_places
from backline.repository.configuration.document import Document
from backline.repository.configuration.override import parse
from backline.repository.configuration.reader import to_model_config
from backline.repository.listing import Listing
from backline.repository.walk import walk
from backline.workers.channel.protocol import Spec, WorkerLoad
from backline.workers.process.pool import PoolOptions, WorkerPool
from backline.workers.process.process import WorkerCommand
from backline_client.protos import message, to_plain
from backline_client.values.errors import Internal, InvalidArgument, Unavailable
from backline_client.values.signature import TensorSpec

log = logging.getLogger("backline.lifecycle")

_BACKEND = "python"


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """The limits of a worker that loads a file with a runtime: the duration of the load in seconds, and the
    resident memory in bytes.
    """

    seconds: float = inf
    memory: int | None = None


class WorkerStarter:
    """Starts the workers of one version. If the model requires packages, the workers run in an environment
    built for the model.

    `folder` is the model's folder, which holds its versions. The `host` is told when an environment is built
    and while its packages are downloaded. `limits` apply only to workers that load a file with a runtime.
    """

    def __init__(
        self,
        shared: Shared,
        model: Model,
        config: ModelConfig,
        folder: Path,
        loop: asyncio.AbstractEventLoop,
        *,
        host: LoadHost,
        limits: RuntimeLimits,
    ) -> None:
        self._limits = limits
        self._shared = shared
        self._config = config
        self._version = model.version
        self._folder = folder
        self._loop = loop
        self._may_complete = not shared.options.complete_configs
        #: Whether the model runs in this process, for debugging.
        self._debugged = config.name == shared.options.debugged_model
        self._environments = _environments(default_folder(shared.options.cache_folder))
        self._host = host
        self.calls = ModelCalls(shared.engine, shared.call_graph, shared.permits, model)
        #: The parts of the configuration that the model completed; None before `start`.
        self.completion: Completion | None = None
        self._starting: Future[None] | None = None
        self._pools: list[WorkerPool] = []
        #: The pools whose workers run a runtime. Cancelling a load aborts these pools, and so also their
        #: trial runs.
        self._with_runtime: list[WorkerPool] = []
        self._uv: Uv | None = None
        self._cancelled = False

    def start(self, hosted: HostedModel, placed: Places) -> tuple[WorkerPool, ModelConfig]:
        """Starts the workers; see LoadHost.

        A model that completes its configuration does this in a first worker, which is then closed.
        """
        if hosted.job:
            return self._start_runtime(hosted, placed), self._config
        if hosted.packed is not None:
            from backline.repository.unpacked import unpacked
            from backline.system.archive_limits import UnpackLimits

            place = self._environments.folder.parent / "unpacked"
            limits = hosted.unpack_limits or UnpackLimits()
            hosted = replace(hosted, path=unpacked(hosted.path, place, hosted.packed, limits))
        if given := self._config.parameters.get(PARAMETER):
            packed = packed_environment(given, self._folder, self._environments.folder.parent / "packed")
            variables = {**packed.variables, **hosted.environment}
            hosted = replace(hosted, python=str(packed.python), environment=variables)
        config = self._config
        remembers = config.sequence is not None and not config.sequence.states
        options = PoolOptions(config.execution_timeout_seconds, config.idempotent, remembers)
        environment = self._environment(hosted)
        if self._debugged:
            self._check_debugged(hosted, environment)
            from backline.workers.debugged import DebuggedWorker

            options = PoolOptions(inf, idempotent=False, remembers=remembers, worker=DebuggedWorker)
            placed = _only_one(placed)
        complete = self._may_complete and _may_complete(hosted.path)
        if not complete:
            self._check_whole()
        command = self._command(hosted, environment, placed, complete=complete)
        pool = self._start(command, options, placed)
        if not pool.loaded.completed:
            try:
                self._check_whole()
            except InvalidArgument:
                pool.close()
                raise
            return pool, config
        pool.close()
        self.completion = read_completion(pool.loaded.completed, config.name, walk(self._folder))
        self._config = config = self.completion.apply(config)
        return self._start(self._command(hosted, environment, placed), options, placed), config

    def _check_whole(self) -> None:
        """Raises InvalidArgument if the configuration is incomplete, as when a tensor lacks its datatype.

        Called only if the model's code does not complete the configuration.
        """
        declared = message("inference.ModelConfig").FromString(self._config.declared)
        check(Document(self._config.source, declared), self._config.name)

    def _start_runtime(self, hosted: HostedModel, placed: Places) -> WorkerPool:
        """Starts a worker that loads a file with its runtime, and that can call no other model."""
        config, limits = self._config, self._limits
        # The smaller of the two limits applies: a client that sends files also chooses the limit in their
        # configuration, but must not be able to raise the server's limit.
        memory = min((one for one in (config.memory_limit_bytes, limits.memory) if one), default=None)
        command = WorkerCommand(
            WorkerLoad(
                hosted.adapter,
                config.name,
                self._version,
                str(hosted.path),
                str(self._folder),
                job=hosted.job,
            ),
            memory_limit_bytes=memory,
            cores=config.cpus,
        )
        options = PoolOptions(config.execution_timeout_seconds, config.idempotent)
        pool = self._start(command, options, placed, calls=False, seconds=limits.seconds)
        self._with_runtime.append(pool)
        if self._cancelled:  # `cancel` ran before the pool was in the list
            self._loop.call_soon_threadsafe(pool.abort)
        return pool

    def _start(
        self,
        command: WorkerCommand,
        options: PoolOptions,
        placed: Places,
        *,
        calls: bool = True,
        seconds: float = inf,
    ) -> WorkerPool:
        pool = WorkerPool(
            command, options, self._loop, placed, self.calls if calls else None, self._shared.poll
        )
        self._pools.append(pool)
        starting = asyncio.run_coroutine_threadsafe(self._begin(pool), self._loop)
        self._starting = starting
        if self._cancelled:  # `cancel` may have run before `_starting` was set
            starting.cancel()
        try:
            starting.result(None if seconds == inf else seconds)
        except TimeoutError:
            self._loop.call_soon_threadsafe(starting.cancel)
            raise Internal(
                f"{pool.label} was not loaded within {seconds:g} s: if it needs longer, raise"
                " --load-timeout-secs"
            ) from None
        except CancelledError:
            raise Unavailable(f"the load of {pool.label} was cancelled") from None
        return pool

    async def _begin(self, pool: WorkerPool) -> None:
        self._shared.pools.add(pool)
        await pool.start()

    @property
    def pids(self) -> list[int]:
        """The process ids of the workers started so far. Called on the event loop."""
        return [pid for pool in self._pools if not pool.debugged for pid in pool.pids]

    def cancel(self) -> None:
        """Aborts `start`. Called on the event loop."""
        self._cancelled = True
        if self._starting is not None:
            self._starting.cancel()
        for pool in self._with_runtime:
            pool.abort()
        if self._uv is not None:
            self._uv.cancel()

    def _check_debugged(self, hosted: HostedModel, environment: Environment | None) -> None:
        label = f"model '{self._config.name}'"
        if hosted.python is not None:
            raise InvalidArgument(
                f"{label} brings its own Python, '{hosted.python}', so it cannot be debugged in the server's"
                " process: run it without --debug"
            )
        others = [] if environment is None else borrow(environment)
        if others:
            text = "with the server's versions of packages, which differ from its environment's"
            log.warning("%s is debugged %s: %s", label, text, ", ".join(others))

    def _environment(self, hosted: HostedModel) -> Environment | None:
        """Returns the environment that the model's files require, or None; builds it if necessary."""
        if hosted.python is not None:
            return None
        folder = hosted.path if hosted.path.is_dir() else hosted.path.parent
        requirements = find_requirements(folder, self._folder, self._config.python, on_top=hosted.on_top)
        if requirements is None:
            return None
        for ignored in requirements.ignored:
            text = "model '%s': '%s' is ignored, because %s takes precedence"
            log.warning(text, self._config.name, ignored, requirements.file)
        user = User(self._config.name, str(folder), str(self._folder), self._config.python, hosted.on_top)
        while (environment := self._environments.find(requirements, user)) is None:
            self._build(requirements, user)
        return environment

    def _build(self, requirements: Requirements, user: User) -> None:
        self._host.on_phase("environment")
        self._uv = uv = Uv()
        if self._cancelled:  # `cancel` may have run before `_uv` was set
            uv.cancel()
        text = "model '%s' version %s: building its environment from %s"
        log.info(text, self._config.name, self._version, requirements.source)
        try:
            self._environments.build(
                requirements, uv, user, on_bytes=self._host.on_bytes, stop=lambda: self._cancelled
            )
        finally:
            self._uv = None
        self._host.on_phase("load")

    def _command(
        self, hosted: HostedModel, environment: Environment | None, placed: Places, *, complete: bool = False
    ) -> WorkerCommand:
        config = View(self._config, hosted.path, STAGES_OF_WORKERS).inner
        load = WorkerLoad(
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
            busy_poll=0.0 if self._debugged else self._shared.poll.longest,
            idempotent=config.idempotent,
        )
        python = hosted.python or sys.executable
        variables = hosted.environment
        if environment is not None:
            python, variables = str(environment.python), {**environment.variables, **variables}
        return WorkerCommand(load, python, variables, config.memory_limit_bytes, config.cpus)


def _may_complete(path: Path) -> bool:
    """Returns whether the model's code may complete the configuration; if not, all workers start together."""
    try:
        return code_may_complete(path.read_bytes())
    except OSError:
        return True


@cache
def _environments(folder: Path) -> Environments:
    """Returns the store of environments in a folder. This process has one store per folder."""
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
    """Returns the placement reduced to one instance, on its first device."""
    first = placed.groups[0]
    only = replace(first, group=replace(first.group, count=1), devices=first.devices[:1])
    return replace(placed, groups=(only,))


def _whole(config: ModelConfig, filename: str, placed: Places) -> str:
    """Returns the complete configuration for the model, with placement and defaults filled in, as JSON."""
    whole = message("inference.ModelConfig").FromString(config.declared)
    whole.backend = config.backend or _BACKEND
    whole.max_batch_size = config.max_batch_size or 0
    fill_places(whole, placed)
    fill_defaults(whole, config.name, filename)
    return json.dumps(to_plain(whole), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """A configuration that the model completed (`auto_complete_config` of Triton's Python backend).

    `given` is an inference.ModelConfig; `listing` lists the files of the model's folder.
    """

    given: Any
    listing: Listing

    def apply(self, config: ModelConfig) -> ModelConfig:
        """Returns `config`, completed. Raises InvalidArgument if the result contradicts itself."""
        given, whole = self.given, message("inference.ModelConfig").FromString(config.declared)
        whole.max_batch_size = given.max_batch_size
        for tensors in ("input", "output"):
            whole.ClearField(tensors)
            getattr(whole, tensors).extend(getattr(given, tensors))
        if given.HasField("dynamic_batching") and whole.WhichOneof("scheduling_choice") is None:
            whole.dynamic_batching.SetInParent()
        if given.HasField("model_transaction_policy"):
            whole.model_transaction_policy.CopyFrom(given.model_transaction_policy)
        source = f"auto_complete_config of model '{config.name}'"
        document = Document(source, whole, {"max_batch_size": None})
        check(document, config.name)
        read = to_model_config(document, config.name, self.listing)
        return replace(
            config,
            max_batch_size=read.max_batch_size,
            inputs=read.inputs,
            outputs=read.outputs,
            dynamic_batching=read.dynamic_batching,
            decoupled=read.decoupled,
            joining=read.joining,
            declared=read.declared,
        )


def read_completion(text: str, name: str, listing: Listing) -> Completion:
    """Parses the JSON that the model `name` returned. Raises InvalidArgument if the JSON is not a
    configuration.
    """
    try:
        return Completion(parse(text).message, listing)
    except InvalidArgument as error:
        raise InvalidArgument(
            f"auto_complete_config of model '{name}': {error.message.partition(': ')[2]}"
        ) from None
