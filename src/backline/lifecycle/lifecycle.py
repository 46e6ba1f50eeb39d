"""Loads what the repositories hold, in parallel, and says how far it is."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from backline.engine.engine import Engine, Model, ModelState, Placement
from backline.engine.errors import BacklineError
from backline.engine.model_config import ModelConfig
from backline.engine.signature import RequestCheck
from backline.lifecycle.cores import usable_cores
from backline.lifecycle.loader import Loaded, load
from backline.lifecycle.run_time import spare_instances
from backline.repository.directory import FoundModel, FoundVersion, scan_all
from backline.schedule.batching import BatchPolicy
from backline.schedule.scheduler import Scheduler
from backline.workers.execution import Execution
from backline.workers.instance import InlineInstance, Instance, ThreadInstance

log = logging.getLogger("backline.lifecycle")

#: Requests that may wait for one model version when its configuration does not say.
DEFAULT_QUEUE_SIZE = 1024
#: The version under which a model is listed whose files do not even give one.
NO_VERSION = "-"


@dataclass(frozen=True, slots=True)
class LoadEvent:
    """A model version changed its state; `done` of `total` loads have ended. `seconds` is how long its load took."""

    name: str
    version: str
    state: ModelState
    reason: str
    seconds: float
    done: int
    total: int


OnEvent = Callable[[LoadEvent], None]


class Lifecycle:
    """The models of some repositories, in one engine. Lives on the engine's event loop; loads run on threads."""

    def __init__(self, engine: Engine, repositories: Sequence[Path], *, load_threads: int) -> None:
        self._engine = engine
        self._repositories = tuple(repositories)
        self._load_threads = load_threads
        self._served: list[tuple[Model, Scheduler, Loaded]] = []
        self._on_event: OnEvent = lambda _: None
        self._done = 0
        self._total = 0

    async def load_all(self, on_event: OnEvent | None = None) -> None:
        """Loads every version that the repositories and the models' policies name.

        A model that fails becomes UNAVAILABLE with its reason and does not stop the others. Raises BacklineError for a repository that
        does not exist or cannot be read.
        """
        if on_event is not None:
            self._on_event = on_event
        found = await asyncio.to_thread(scan_all, self._repositories)
        loads: list[tuple[Model, FoundVersion]] = []
        for model in found:
            for warning in model.warnings:
                log.warning("%s", warning)
            loads += self._announce(model)
        self._total = len(loads)
        threads = ThreadPoolExecutor(self._load_threads, thread_name_prefix="load")
        try:
            await asyncio.gather(*(self._load(model, version, threads) for model, version in loads))
        finally:  # when this is cancelled, loads that have begun must not keep the event loop waiting
            threads.shutdown(wait=False, cancel_futures=True)
        self._engine.started()

    async def close(self) -> None:
        """Takes no further request, refuses what still waits, lets what runs end, and gives the models' memory back."""
        served, self._served = self._served, []
        for model, _, _ in served:
            model.state = ModelState.UNLOADING
        self._engine.refresh()
        for model, scheduler, loaded in served:
            await scheduler.close()
            loaded.model.close()
            model.state = ModelState.UNAVAILABLE
            model.reason = "unloaded"
        self._engine.refresh()

    def _announce(self, found: FoundModel) -> list[tuple[Model, FoundVersion]]:
        """Makes a model's versions known to the engine; returns those to load."""
        self._engine.declare(found.name)
        if found.problem:
            self._fail(Model(found.name, NO_VERSION, found.config), found.problem, known=False)
            return []
        loads = []
        for version in found.versions:
            model = Model(found.name, version.version, found.config)
            if version.problem:
                self._fail(model, version.problem, known=False)
                continue
            model.state = ModelState.LOADING
            self._engine.add(model)
            loads.append((model, version))
        return loads

    async def _load(self, model: Model, version: FoundVersion, threads: ThreadPoolExecutor) -> None:
        started = time.monotonic()
        try:
            assert version.file is not None, "a version without a problem has a file"
            loaded = await asyncio.get_running_loop().run_in_executor(threads, load, version.file, model.config)
        except BacklineError as error:
            self._fail(model, error.message)
        except Exception as error:
            log.exception("loading '%s' version %s failed", model.name, model.version)
            self._fail(model, f"{type(error).__name__}: {error}")
        else:
            model.statistics.load_seconds = time.monotonic() - started
            self._serve(model, loaded)

    def _fail(self, model: Model, reason: str, *, known: bool = True) -> None:
        model.state = ModelState.UNAVAILABLE
        model.reason = reason
        if not known:
            self._engine.add(model)
        else:
            self._done += 1
        log.error("model '%s' version %s is not available: %s", model.name, model.version, reason)
        self._tell(model)

    def _serve(self, model: Model, loaded: Loaded) -> None:
        """Puts a loaded model behind a queue and opens it to requests."""
        for warning in loaded.warnings:
            log.warning("%s", warning)
        config = model.config
        execute = Execution(model.name, model.version, loaded.model, batched=loaded.max_batch_size > 0)
        instances: list[Instance]
        if loaded.lane == "inline":
            on_slow = partial(self._move_to_threads, model, loaded, execute) if config.lane is None else None
            instances = [InlineInstance(execute, on_slow)]
        else:
            instances = _threads(model, execute, loaded.instances)
        scheduler = Scheduler(
            model.name,
            _policy(config, loaded),
            instances,
            model.statistics,
            max_queue_size=config.max_queue_size or DEFAULT_QUEUE_SIZE,
            loop=asyncio.get_running_loop(),
            default_timeout=config.default_timeout_us / 1e6 or None,
        )
        self._served.append((model, scheduler, loaded))
        model.backend = loaded.backend
        model.platform = loaded.platform
        model.signature = loaded.signature
        model.max_batch_size = loaded.max_batch_size
        model.placement = Placement(loaded.lane, len(instances), loaded.max_batch_size, loaded.reason)
        model.check = RequestCheck(model.name, loaded.signature, loaded.max_batch_size, strict=config.max_batch_size is not None)
        model.queue = scheduler
        model.state = ModelState.READY
        self._engine.refresh()
        self._done += 1
        self._tell(model)

    def _move_to_threads(self, model: Model, loaded: Loaded, execute: Execution) -> None:
        """Takes a model off the event loop that keeps it longer than was measured when it was loaded."""
        if model.state is not ModelState.READY:
            return
        scheduler = next(scheduler for served, scheduler, _ in self._served if served is model)
        count = spare_instances(usable_cores(), loaded.model.threads_per_run)
        scheduler.replace_instances(_threads(model, execute, count))
        moved = f"requests came that take longer than {InlineInstance.LONG_RUN_NS / 1e6:g} ms, so it was moved to threads"
        log.warning("model '%s' version %s ran on the event loop, but %s", model.name, model.version, moved)
        model.placement = Placement("thread", count, loaded.max_batch_size, f"{loaded.reason}; {moved}")

    def _tell(self, model: Model) -> None:
        self._on_event(
            LoadEvent(model.name, model.version, model.state, model.reason, model.statistics.load_seconds, self._done, self._total)
        )


def _threads(model: Model, execute: Execution, count: int) -> list[Instance]:
    loop = asyncio.get_running_loop()
    return [ThreadInstance(execute, loop, f"{model.name}-{number}") for number in range(count)]


def _policy(config: ModelConfig, loaded: Loaded) -> BatchPolicy:
    if not loaded.max_batch_size:
        return BatchPolicy()
    preferred = config.preferred_batch_sizes
    return BatchPolicy(max(loaded.batch_limit, *preferred, 1), preferred, config.max_queue_delay_us * 1000)
