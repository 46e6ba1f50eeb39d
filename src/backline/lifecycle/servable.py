"""The life of one version: fetched, loaded, warmed up, served, drained, unloaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor as Threads
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from backline.engine.engine import LoadProgress, Model, ModelState, Placement
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.engine.signature import RequestCheck
from backline.engine.statistics import ModelStatistics
from backline.lifecycle.cores import usable_cores
from backline.lifecycle.loader import Loaded, Measured, load, place_again
from backline.lifecycle.memory import LoadMeter
from backline.lifecycle.plan import Held, Phase
from backline.lifecycle.queueing import VersionQueue, build_queue, settings_of
from backline.lifecycle.run_time import spare_instances
from backline.lifecycle.warm_up import warm_up
from backline.lifecycle.warm_up_samples import warm_up_samples
from backline.repository.repository import FetchedVersion, FoundVersion, OnBytes
from backline.schedule.total import QueueTotal
from backline.workers.execution import Execution
from backline.workers.instance import InlineInstance, Instance, ThreadInstance

log = logging.getLogger("backline.lifecycle")

Fetch: TypeAlias = Callable[[OnBytes], Awaitable[FetchedVersion]]


class Servable:
    """One load of one version, and what serves it. Lives on the event loop; `model` is what the engine and its callers see."""

    def __init__(
        self,
        key: int,
        config: ModelConfig,
        version: FoundVersion,
        fingerprint: str,
        fetch: Fetch,
        *,
        statistics: ModelStatistics | None = None,
        total: QueueTotal | None = None,
        meter: LoadMeter | None = None,
        recorded: Path | None = None,
        attempt: int = 1,
        beside_serving: bool = False,
        at_start: bool = False,
        trust_pickle: bool = False,
    ) -> None:
        self.key = key
        self.fingerprint = fingerprint
        self.phase = Phase.LOADING
        self.attempt = attempt
        #: Whether its load began while another version of the model served.
        self.beside_serving = beside_serving
        #: Whether it belongs to what the start is to load.
        self.at_start = at_start
        #: The size of its files, in bytes.
        self.file_bytes = sum(file.size for file in version.files.values())
        #: When it was opened to requests, of time.time().
        self.ready_at = 0.0
        #: When a failed load is tried again, of time.monotonic().
        self.retry_at: float | None = None
        #: Seconds after which a request may have better luck than the failed load had; None where that is not known.
        self.retry_after: float | None = None
        #: The load or the drain that is under way.
        self.task: asyncio.Task[None] | None = None
        self.measured: Measured | None = None
        self.model = Model(config.name, version.version, config)
        self.model.state = ModelState.LOADING
        if statistics is not None:
            self.model.statistics = statistics
        self._version = version
        self._meter = meter or LoadMeter()
        self._recorded = recorded
        self._total = total
        self._trust_pickle = trust_pickle
        self._fetch = fetch
        self._loaded: Loaded | None = None
        self._queue: VersionQueue | None = None
        self._execute: Execution | None = None
        self._moved = False

    def held(self) -> Held:
        """What the planner sees."""
        model = self.model
        return Held(self.key, model.name, model.version, self.fingerprint, self.phase, model.config, self.retry_at)

    async def load(self, threads: Threads, known: Measured | None) -> None:
        """Fetches, loads and warms up; `known` is what an earlier load of the same files measured. Raises BacklineError with the reason."""
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = time.monotonic()
        progress = self.model.progress = LoadProgress("fetch", began)

        def on_bytes(done: int, total: int) -> None:
            progress.bytes_done, progress.bytes_total = done, total

        fetched = await self._fetch(on_bytes)
        loading = asyncio.get_running_loop().run_in_executor(threads, self._load, fetched, known)
        try:
            loaded, check, self.model.memory_bytes = await asyncio.shield(loading)
        except asyncio.CancelledError:
            loading.add_done_callback(_discard)  # a runtime cannot be interrupted
            raise
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self._start(loaded, check)
        self.model.progress = None
        self.model.statistics.load_seconds = time.monotonic() - began
        self.phase = Phase.LOADED

    def _load(self, fetched: FetchedVersion, known: Measured | None) -> tuple[Loaded, RequestCheck, int]:
        """On a thread. The last of the results is the memory that it took, in bytes."""
        with self._meter.measure(self.file_bytes) as measured:
            loaded, check = self._load_and_warm_up(fetched, known)
        return loaded, check, measured.memory

    def _load_and_warm_up(self, fetched: FetchedVersion, known: Measured | None) -> tuple[Loaded, RequestCheck]:
        config = self.model.config
        loaded = load(fetched.path, replace(config, trust_pickle=self._trust_pickle), known, self._on_phase)
        try:
            check = RequestCheck(config.name, loaded.signature, loaded.max_batch_size, strict=config.max_batch_size is not None)
            self._on_phase("warm-up")
            samples = warm_up_samples(
                config,
                batched=loaded.max_batch_size > 0,
                version_folder=fetched.path if fetched.path.is_dir() else fetched.path.parent,
                model_folder=fetched.model_folder,
                recorded=self._recorded,
            )
            warm_up(config.name, loaded.model, check, samples)
        except BaseException:
            loaded.model.close()
            raise
        return loaded, check

    def _on_phase(self, phase: str) -> None:
        if self.model.progress is not None:
            self.model.progress.phase = phase

    def _start(self, loaded: Loaded, check: RequestCheck) -> None:
        """Puts a loaded model behind a queue."""
        model = self.model
        self._loaded = loaded
        self.measured = loaded.measured
        self._execute = Execution(model.name, model.version, loaded.model, batched=loaded.max_batch_size > 0)
        instances = self._instances(loaded)
        self._queue = build_queue(model, loaded, instances, self._total)
        model.backend = loaded.backend
        model.platform = loaded.platform
        model.signature = loaded.signature
        model.max_batch_size = loaded.max_batch_size
        model.placement = Placement(loaded.lane, len(instances), loaded.max_batch_size, loaded.reason)
        model.check = check
        model.queue = self._queue

    def _instances(self, loaded: Loaded) -> list[Instance]:
        assert self._execute is not None, "it is loaded"
        if loaded.lane == "inline" and not self._moved:
            on_slow = self._move_to_threads if self.model.config.lane is None else None
            return [InlineInstance(self._execute, on_slow)]
        return self._threads(loaded.instances if loaded.lane == "thread" else self._spare())

    def _threads(self, count: int) -> list[Instance]:
        assert self._execute is not None, "it is loaded"
        loop = asyncio.get_running_loop()
        return [ThreadInstance(self._execute, loop, f"{self.model.name}-{number}") for number in range(count)]

    def _spare(self) -> int:
        assert self._loaded is not None, "it is loaded"
        return spare_instances(usable_cores(), self._loaded.model.threads_per_run)

    def serve(self) -> None:
        """From now on it takes requests, once the engine knows it."""
        self.phase = Phase.READY
        self.model.state = ModelState.READY
        self.ready_at = time.time()

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        return self._queue is not None and (self._queue.pending > 0 or self._queue.running > 0)

    @property
    def last_used(self) -> float:
        """When it last answered, or was opened to requests, of time.time()."""
        return max(self.ready_at, self.model.statistics.last_inference_ms / 1000)

    def update(self, config: ModelConfig) -> None:
        """Takes a configuration that differs in what needs no load."""
        assert self._loaded is not None, "only what is loaded is updated"
        assert self._queue is not None, "what is loaded has a queue"
        before, self.model.config = self._loaded, config
        loaded = self._loaded = place_again(before, config)
        instances = None
        if (loaded.lane, loaded.instances) != (before.lane, before.instances):
            instances = self._instances(loaded)
        self._queue.update(settings_of(config, loaded), instances=instances)
        if instances is not None:
            lane = "thread" if isinstance(instances[0], ThreadInstance) else "inline"
            self.model.placement = Placement(lane, len(instances), loaded.max_batch_size, loaded.reason)

    def fail(self, reason: str, retry_at: float | None) -> None:
        """Its load has failed, and is tried again at `retry_at` if that is a time."""
        self.phase = Phase.FAILED
        self.retry_at = retry_at
        self.model.state = ModelState.UNAVAILABLE
        self.model.reason = reason
        self.model.progress = None

    def begin_drain(self) -> None:
        """From now on it takes no more requests, once the engine knows."""
        self.phase = Phase.DRAINING
        self.model.state = ModelState.UNLOADING
        self.model.reason = ""

    async def drain(self, limit: float) -> None:
        """Finishes what it has, for at most `limit` seconds, and gives its memory back."""
        if self._queue is not None:
            await self._queue.drain(limit)
        if self._loaded is not None:
            # Tearing a large model down takes long enough to keep others waiting.
            await asyncio.get_running_loop().run_in_executor(None, self._loaded.model.close)
        self._loaded = self._execute = None
        self.model.queue = self.model.check = None
        self.model.state = ModelState.UNAVAILABLE
        self.model.reason = "unloaded"
        self.model.memory_bytes = 0

    def _move_to_threads(self) -> None:
        """Takes a model off the event loop that keeps it longer than was measured when it was loaded."""
        if self.phase is not Phase.READY:
            return
        assert self._loaded is not None, "what is ready is loaded"
        assert self._queue is not None, "what is ready has a queue"
        self._moved = True
        model = self.model
        count = self._spare()
        self._queue.replace_instances(self._threads(count))
        moved = f"requests came that take longer than {InlineInstance.LONG_RUN_NS / 1e6:g} ms, so it was moved to threads"
        log.warning("model '%s' version %s ran on the event loop, but %s", model.name, model.version, moved)
        model.placement = Placement("thread", count, self._loaded.max_batch_size, f"{self._loaded.reason}; {moved}")


def _discard(loading: asyncio.Future[tuple[Loaded, RequestCheck, int]]) -> None:
    """Closes what was loaded for nobody."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result()[0].model.close()
