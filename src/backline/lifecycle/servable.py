"""The life of one version: fetched, loaded, warmed up, served, drained, unloaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor as Threads
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from backline.engine.decoupled import DecoupledCheck
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.model import LoadProgress, Model, ModelState
from backline.engine.model_config import ModelConfig
from backline.engine.response_statistics import FIRST_RESPONSE_BOUNDS_MS
from backline.engine.statistics import ModelStatistics
from backline.lifecycle.loading.instances import InstanceMaker
from backline.lifecycle.loading.loader import Loaded, Measured, place_again
from backline.lifecycle.loading.queueing import build_queue, build_sequence_queue, settings_of
from backline.lifecycle.loading.scheduling_text import scheduling_text
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.loading.version_load import VersionLoad, WarmModel
from backline.lifecycle.plan import Held, Phase
from backline.repository.repository import FetchedVersion, FoundVersion, OnBytes
from backline.schedule.version_queue import InstancesQueue, with_deadline
from backline.workers.here.instances import InlineInstance
from backline.workers.here.streaming import StreamPool
from backline.workers.model_in_workers import ModelInWorkers

if TYPE_CHECKING:
    from backline.lifecycle.loading.completion import Completion

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
        shared: Shared,
        *,
        statistics: ModelStatistics | None,
        attempt: int,
        beside_serving: bool,
        may_run_code: bool,
        on_given_up: Callable[[Model, str], None],
    ) -> None:
        """`statistics` are those of the load that this one replaces, if any; `on_given_up` is called when an instance was replaced."""
        self.key = key
        self.fingerprint = fingerprint
        self.phase = Phase.LOADING
        self.attempt = attempt
        #: Whether its load began while another version of the model served.
        self.beside_serving = beside_serving
        #: Whether it belongs to what the start is to load.
        self.at_start = not shared.started
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
        self._shared = shared
        #: Without what the model has completed.
        self._config = config
        self._version = version
        self._fetch = fetch
        self._may_run_code = may_run_code
        self._on_given_up = on_given_up
        self._load: VersionLoad | None = None
        self._completion: Completion | None = None
        self._loaded: Loaded | None = None
        self._queue: InstancesQueue | None = None
        self._maker: InstanceMaker | None = None

    def held(self) -> Held:
        """What the planner sees."""
        model = self.model
        return Held(
            self.key, model.name, model.version, self.fingerprint, self.phase, self._config, self.retry_at
        )

    async def load(self, threads: Threads, known: Measured | None) -> None:
        """Fetches, loads and warms up; `known` is what an earlier load of the same files measured. Raises BacklineError with the reason."""
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = time.monotonic()
        progress = self.model.progress = LoadProgress("fetch", began)

        def on_bytes(done: int, total: int) -> None:
            progress.bytes_done, progress.bytes_total = done, total

        fetched = await self._fetch(on_bytes)
        self._load = load = VersionLoad(
            self._shared,
            self.model,
            self._config,
            self._version,
            fetched,
            known,
            may_run_code=self._may_run_code,
            on_bytes=on_bytes,
        )
        loop = asyncio.get_running_loop()
        loading = loop.run_in_executor(threads, load.run)
        try:
            warm = await asyncio.shield(loading)
        except asyncio.CancelledError:
            load.cancel()
            loading.add_done_callback(_discard)  # a runtime cannot be interrupted
            raise
        try:
            self._start(warm)
        except BacklineError:
            await loop.run_in_executor(None, warm.loaded.model.close)
            raise
        self.model.progress = None
        self.model.statistics.load_seconds = time.monotonic() - began
        self.phase = Phase.LOADED

    def _start(self, warm: WarmModel) -> None:
        """Puts a loaded model behind a queue."""
        loaded = warm.loaded
        model, shared = self.model, self._shared
        self._completion = warm.completion
        model.config = self._completed(self._config)
        self._warn(loaded)
        self._loaded = loaded
        self.measured = loaded.measured
        self._maker = maker = InstanceMaker(
            model,
            shared.permits,
            shared.cores,
            on_slow=self._move_to_threads,
            on_available=self._on_available,
            on_ready=self._on_ready,
            on_given_up=lambda reason: self._on_given_up(model, reason),
        )
        instances = maker.make(loaded)
        if warm.tensors is not None:
            self._queue = model.sequences = build_sequence_queue(
                model, loaded, instances, warm.tensors, shared.states, shared.total
            )
        else:
            # What nobody can tell from another load's is kept for this one only.
            content = warm.content or f"load {uuid4()}"
            self._queue = build_queue(
                model,
                loaded,
                instances,
                shared.total,
                turn=shared.turn,
                cache=shared.cache,
                fingerprint=content,
            )
        model.backend = loaded.backend
        model.platform = loaded.platform
        model.signature = loaded.signature
        model.max_batch_size = loaded.max_batch_size
        model.memory_bytes = warm.memory
        model.placement = maker.placement(loaded, instances)
        model.decoupled = (
            loaded.model.loaded.decoupled
            if isinstance(loaded.model, ModelInWorkers)
            else model.config.decoupled
        )
        self._tell(loaded)
        model.check = DecoupledCheck(model.name, warm.check) if model.decoupled else warm.check
        model.queue = with_deadline(self._queue, model.config.default_deadline_seconds)

    def _tell(self, loaded: Loaded) -> None:
        """What people and metrics are told of the configuration."""
        model, config = self.model, self.model.config
        cached = config.response_cache and self._shared.cache is not None
        times, waits = loaded.measured.times.seconds, loaded.max_queue_delay_us
        model.scheduling = scheduling_text(
            config, loaded.batch_limit, times, waits_us=waits, decoupled=model.decoupled, cached=cached
        )
        self._time_first_responses()

    def _time_first_responses(self) -> None:
        responses = self.model.statistics.responses
        if responses is not None:
            responses.measure_first(self.model.config.first_response_bounds_ms or FIRST_RESPONSE_BOUNDS_MS)

    def _completed(self, config: ModelConfig) -> ModelConfig:
        return config if self._completion is None else self._completion.apply(config)

    def _warn(self, loaded: Loaded) -> None:
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self._warn_of_cache()

    def _warn_of_cache(self) -> None:
        if self.model.config.response_cache and self._shared.cache is None:
            log.warning(
                "model '%s' version %s asks for the response cache, but the server has none and runs every request:"
                " start it with --cache-config local,size=64MiB",
                self.model.name,
                self.model.version,
            )

    def _on_available(self, reason: str) -> None:
        """Nothing can run the model any more, for a reason, or something can again."""
        if self.phase is Phase.READY:
            self.model.state = ModelState.UNAVAILABLE if reason else ModelState.READY
            self.model.reason = reason
            self._shared.engine.refresh()

    def _on_ready(self, reason: str) -> None:
        """The model says of itself that it is not ready, or is again; its requests are answered all the same."""
        self.model.unready = reason
        if self.phase is Phase.READY:
            self._shared.engine.refresh()

    def review(self) -> bool:
        """Whether others that it asks have changed so that it was taken out of service, or may be loaded again. It asks none."""
        return False

    @property
    def may_come_back(self) -> bool:
        """Whether one that was taken out of service by `review` has what it lacked."""
        return False

    def serve(self) -> None:
        """From now on it takes requests, once the engine knows it."""
        self.phase = Phase.READY
        self.model.state = ModelState.READY
        self.ready_at = time.time()

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        queue, sequences = self._queue, self.model.sequences
        return queue is not None and (
            queue.pending > 0 or queue.running > 0 or (sequences is not None and sequences.open_sequences > 0)
        )

    @property
    def last_used(self) -> float:
        """When it last answered, or was opened to requests, of time.time()."""
        return max(self.ready_at, self.model.statistics.last_inference_ms / 1000)

    def update(self, config: ModelConfig) -> None:
        """Takes a configuration that differs in what needs no load."""
        assert self._loaded is not None, "only what is loaded is updated"
        assert self._queue is not None, "what is loaded has a queue"
        assert self._maker is not None, "what is loaded has instances"
        groups = self.model.config.instance_groups
        self._config = config
        config = self._completed(config)
        before, self.model.config = self._loaded, config
        loaded = self._loaded = place_again(before, config)
        if isinstance(loaded.model, ModelInWorkers) and config.instance_groups != groups:
            workers = f"{loaded.instances} worker process{'es' if loaded.instances > 1 else ''}"
            later = "another instance_group has an effect when it is loaded next"
            log.warning(
                "model '%s' version %s goes on in %s: %s", self.model.name, self.model.version, workers, later
            )
        instances = None
        if (loaded.lane, loaded.instances) != (
            before.lane,
            before.instances,
        ) or config.instance_groups != groups:
            instances = self._maker.make(loaded)
        self._queue.update(settings_of(config, loaded), instances=instances)
        self._tell(loaded)
        if instances is not None:
            self.model.placement = self._maker.placement(loaded, instances)

    def fail(self, reason: str, retry_at: float | None) -> None:
        """Its load has failed, and is tried again at `retry_at` if that is a time."""
        self.phase = Phase.FAILED
        if self._load is not None:
            self._load.forget_calls()
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
            streams = None if self._maker is None else self._maker.streams
            ending = (
                None
                if streams is None
                else asyncio.get_running_loop().call_later(limit, self._end_streams, streams)
            )
            await self._queue.drain(limit)
            if ending is not None:
                ending.cancel()
        if self._maker is not None and self._maker.stuck:
            log.error(
                "the memory of model '%s' version %s is not given back: runs of it do not end",
                self.model.name,
                self.model.version,
            )
        elif self._loaded is not None:
            # Tearing a large model down takes long enough to keep others waiting.
            await asyncio.get_running_loop().run_in_executor(None, self._loaded.model.close)
        self._loaded = self._maker = None
        if self._load is not None:
            self._load.forget_calls()
        self.model.queue = self.model.check = self.model.sequences = None
        self.model.state = ModelState.UNAVAILABLE
        self.model.reason = "unloaded"
        self.model.memory_bytes = 0

    def _end_streams(self, streams: StreamPool) -> None:
        """Ends streams that go on for longer than a drain may take: they may have no end."""
        streams.end_all(Unavailable(f"model '{self.model.name}' is being unloaded", retry_after=1))

    def _move_to_threads(self) -> None:
        """Takes a model off the event loop that keeps it longer than was measured when it was loaded."""
        if self.phase is not Phase.READY:
            return
        assert self._loaded is not None, "what is ready is loaded"
        assert self._queue is not None, "what is ready has a queue"
        assert self._maker is not None, "what is ready has instances"
        model = self.model
        instances = self._maker.move_to_threads(self._loaded)
        self._queue.replace_instances(instances)
        moved = f"requests came that take longer than {InlineInstance.LONG_RUN_NS / 1e6:g} ms, so it was moved to threads"
        log.warning("model '%s' version %s ran on the event loop, but %s", model.name, model.version, moved)
        placement = self._maker.placement(self._loaded, instances)
        model.placement = replace(placement, reason=f"{placement.reason}; {moved}")


def _discard(loading: asyncio.Future[WarmModel]) -> None:
    """Closes what was loaded for nobody."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result().loaded.model.close()
