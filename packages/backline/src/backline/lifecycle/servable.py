"""Takes one version through all its phases: fetch, load, warm up, serve, drain, unload."""

from __future__ import annotations

import asyncio
import logging
import posixpath
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias
from uuid import uuid4

from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig
from backline.engine.model import NO_SEQUENCES, NOT_SERVED, LoadProgress, Model, OpenSequences, Serving
from backline.engine.request_check import DecoupledCheck
from backline.engine.statistics import FIRST_RESPONSE_BOUNDS_MS, ModelStatistics
from backline.lifecycle.loading.instances import InstanceMaker
from backline.lifecycle.loading.load_threads import LoadThreads
from backline.lifecycle.loading.loaded import LoadedVersion, LoadedWorkers, Measured
from backline.lifecycle.loading.queueing import (
    build_queue,
    build_sequence_queue,
    default_queue_size,
    scheduling_text,
    settings_of,
)
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.loading.version_load import VersionLoad, WarmModel
from backline.lifecycle.memory.meter import LoadMemory
from backline.lifecycle.memory.needs import load_kind
from backline.lifecycle.options import runs_apart
from backline.lifecycle.phase import ShownVersion, VersionPhase
from backline.lifecycle.plan import HeldVersion
from backline.repository.repository import EXAMPLES, FetchedVersion, FoundVersion, OnBytes
from backline.schedule.version_queue import InstancesQueue, with_deadline
from backline.workers.here.instances import InlineInstance
from backline_client.values.errors import BacklineError, InvalidArgument

if TYPE_CHECKING:
    from backline.lifecycle.loading.worker_pools import Completion

log = logging.getLogger("backline.lifecycle")

Fetch: TypeAlias = Callable[[OnBytes], Awaitable[FetchedVersion]]
#: A function that is given the memory of a loaded model, and raises BacklineError if that is too much.
Settle: TypeAlias = Callable[[LoadMemory], Awaitable[None]]


class Servable(ShownVersion):
    """One load of one version, with the queue and instances that serve the version. Use it only on the event
    loop.
    """

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
        another_serves: bool,
        from_elsewhere: bool,
        on_given_up: Callable[[Model, str], None],
        on_redescribed: Callable[[Servable], None],
        on_resized: Callable[[], None],
    ) -> None:
        """`statistics` are the statistics of the load that this load replaces. `attempt` is 1 for the first
        try of a load, and one more for each retry.

        `from_elsewhere` says whether the files come from a remote repository or a load request.

        `on_given_up` is called with the model and the reason when an instance that hung has been replaced,
        and `on_redescribed` with this object when the servers of a remote model have changed the model, so
        that the version must be loaded again. `on_resized` is called when the number of worker processes has
        been changed, or could not be changed.
        """
        model = Model(config.name, version.version, config, statistics=statistics or ModelStatistics())
        filename = posixpath.basename(version.path or "")
        # If the version's folder itself is the model, there is no file to name.
        if config.ensemble is None and filename != version.version:
            model.filename = filename
        super().__init__(model, VersionPhase.LOADING)
        self.key = key
        self.fingerprint = fingerprint
        self.attempt = attempt
        #: Whether another version of the model was serving when this load began.
        self.another_serves = another_serves
        #: Whether this load began before the server's start was complete.
        self.at_start = not shared.started
        #: Whether every retry of the load would fail too, because the scan found the files to be unusable.
        self.hopeless = bool(version.problem)
        #: The properties of the load that are known before it begins.
        apart = runs_apart(shared.options.isolate, from_elsewhere=from_elsewhere)
        self.kind = load_kind(
            replace(config, lane="process") if apart else config,
            fingerprint,
            version.path or "",
            {name: file.size for name, file in version.files.items()},
            () if shared.gpu_budgets is None else shared.gpu_budgets.bytes,
        )
        #: The time when the version was opened to requests (time.time()); 0 before.
        self.ready_at = 0.0
        #: The time when the version was unloaded (time.monotonic()); 0 before.
        self.ended_at = 0.0
        #: The time when a failed load is retried (time.monotonic()); None for never.
        self.retry_at: float | None = None
        #: The seconds after which another try of a failed load might succeed; None if unknown.
        self.retry_after: float | None = None
        #: The running load or drain.
        self.task: asyncio.Task[None] | None = None
        self.measured: Measured | None = None
        #: The memory that the loaded model holds; None before it is loaded.
        self.memory: LoadMemory | None = None
        self._shared = shared
        #: The configuration as written, without settings that the model's own code added.
        self._config = config
        self._version = version
        self._fetch = fetch
        self._from_elsewhere = from_elsewhere
        self._on_given_up = on_given_up
        self._on_redescribed = on_redescribed
        self._on_resized = on_resized
        self._load: VersionLoad | None = None
        self._completion: Completion | None = None
        self._loaded: LoadedVersion | None = None
        self._queue: InstancesQueue | None = None
        self._maker: InstanceMaker | None = None
        #: The tasks that change the number of worker processes.
        self._resizing: set[asyncio.Task[None]] = set()
        #: Why the number of worker processes could not be changed as the configuration says; usually empty.
        self.resize_failure = ""

    @property
    def settings(self) -> ModelConfig:
        """The configuration as written, without settings that the model's own code added."""
        return self._config

    def held(self, replaced_by: frozenset[str], *, dismissed: bool) -> HeldVersion:
        """Returns this load in the form that the planner needs; see HeldVersion."""
        return HeldVersion(
            self.key,
            self.model.name,
            self.model.version,
            self.fingerprint,
            self.phase,
            self._config,
            self.retry_at,
            replaced_by,
            dismissed,
        )

    @property
    def pids(self) -> Sequence[int]:
        """The ids of the worker processes that hold the version, or that its load has started."""
        if self._loaded is not None:
            return self._loaded.pids
        return () if self._load is None else self._load.pids

    async def load(self, threads: LoadThreads, known: Measured | None, settle: Settle) -> None:
        """Fetches, loads and warms up the version. Raises BacklineError if that fails.

        `known` are the measurements of an earlier load of the same files, if any. `settle` is called with the
        memory of the loaded model before the model may serve. If `settle` raises, the model is closed.
        """
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = time.monotonic()
        progress = self.model.progress = LoadProgress("fetch", began)

        def on_bytes(done: int, total: int) -> None:
            progress.bytes_done, progress.bytes_total = done, total

        fetched = await self._fetch(on_bytes)
        self.model.examples = tuple(fetched.model_folder / EXAMPLES / name for name in self._version.examples)
        self._load = load = VersionLoad(
            self._shared,
            self.model,
            self._config,
            self._version,
            fetched,
            known,
            self.kind,
            from_elsewhere=self._from_elsewhere,
        )
        try:
            # A runtime cannot be interrupted, so after a cancellation, the model is closed once it is loaded.
            warm = await threads.run(load.run, lambda warm: warm.loaded.close())
        except asyncio.CancelledError:
            load.cancel()
            raise
        try:
            await settle(warm.memory)
            self._start(warm)
        except BaseException:
            await asyncio.get_running_loop().run_in_executor(None, warm.loaded.close)
            raise
        self.model.progress = None
        self.model.statistics.load_seconds = time.monotonic() - began
        self.enter(VersionPhase.LOADED)

    def _start(self, warm: WarmModel) -> None:
        """Makes the instances and the queue of a loaded model."""
        loaded = warm.loaded
        model, shared = self.model, self._shared
        self._completion = warm.completion
        model.config = self._completed(self._config)
        for warning in loaded.warnings:
            log.warning("%s", warning)
        self._warn_of_cache()
        self._loaded = loaded
        self.measured = loaded.measured
        self._maker = maker = InstanceMaker(
            model,
            shared.permits,
            shared.cores,
            shared.poll,
            on_slow=self._move_to_threads,
            on_available=self._on_available,
            on_ready=self._on_ready,
            on_given_up=lambda reason: self._on_given_up(model, reason),
            on_redescribed=lambda: self._on_redescribed(self),
        )
        instances = maker.make(loaded)
        sequences: OpenSequences = NO_SEQUENCES
        if warm.tensors is not None:
            self._queue = sequences = build_sequence_queue(
                model,
                loaded,
                instances,
                warm.tensors,
                shared.states,
                shared.total,
                options=shared.options,
            )
        else:
            turn, cache = shared.turn, shared.cache
            # Without a digest of the files, responses are cached for this load only.
            content = warm.content or ("" if cache is None else f"load {uuid4()}")
            self._queue = build_queue(
                model,
                loaded,
                instances,
                shared.total,
                turn=turn,
                cache=cache,
                fingerprint=content,
                options=shared.options,
            )
        model.backend = loaded.backend
        model.platform = loaded.platform
        model.signature = loaded.signature
        model.max_batch_size = loaded.max_batch_size
        self._show_memory(warm.memory)
        model.placement = maker.placement(loaded, instances)
        model.worker_pids = lambda: self.pids
        model.decoupled = loaded.decoupled
        model.reads_parameters = loaded.reads_parameters
        self._tell(loaded)
        model.serving = Serving(
            DecoupledCheck(model.name, warm.check) if model.decoupled else warm.check,
            with_deadline(self._queue, model.config.default_deadline_seconds),
            sequences,
        )

    def _show_memory(self, memory: LoadMemory) -> None:
        self.memory = memory
        loop = asyncio.get_running_loop()

        def show() -> None:
            if self._loaded is not None:
                self.model.memory_bytes = memory.shown

        def on_change() -> None:
            loop.call_soon_threadsafe(show)

        memory.on_change = on_change
        show()

    def _tell(self, loaded: LoadedVersion) -> None:
        """Updates the scheduling text and the metrics that depend on the configuration."""
        model, config = self.model, self.model.config
        cached = config.response_cache and self._shared.cache is not None
        times, waits = loaded.measured.times.seconds, loaded.max_queue_delay_us
        model.scheduling = scheduling_text(
            config,
            loaded.batch_limit,
            times,
            waits_us=waits,
            decoupled=model.decoupled,
            cached=cached,
            lone_threads=loaded.lone_threads,
            queue_size=default_queue_size(loaded, self._shared.options),
        )
        self._time_first_responses()

    def _time_first_responses(self) -> None:
        responses = self.model.statistics.responses
        if responses is not None:
            responses.measure_first(self.model.config.first_response_bounds_ms or FIRST_RESPONSE_BOUNDS_MS)

    def _completed(self, config: ModelConfig) -> ModelConfig:
        return config if self._completion is None else self._completion.apply(config)

    def _warn_of_cache(self) -> None:
        if self.model.config.response_cache and self._shared.cache is None:
            log.warning(
                "model '%s' version %s asks for the response cache, but the server has none and runs every"
                " request: start the server with --cache-config local,size=64MiB",
                self.model.name,
                self.model.version,
            )

    def _on_available(self, reason: str) -> None:
        """Called with a reason when no instance can run the model, and with "" when an instance can run it
        again. In between, clients see the version as unavailable, with this reason.
        """
        if self.phase is VersionPhase.READY:
            self._show(reason, stalled=bool(reason))
            self._shared.engine.refresh((self.model.name,))

    def _on_ready(self, reason: str) -> None:
        """Called with a reason when the model reports that it is not ready, and with "" when it is ready
        again. In between, readiness checks of the version fail.
        """
        self.model.unready = reason
        if self.phase is VersionPhase.READY:
            self._shared.engine.refresh((self.model.name,))

    def review(self) -> bool:
        """Checks the models that an ensemble calls. Returns whether changes to these models take the ensemble
        out of service, or allow it to be loaded again. Always False unless the model is an ensemble.
        """
        return False

    @property
    def may_come_back(self) -> bool:
        """Whether a version that `review` took out of service can be loaded again."""
        return False

    def serve(self) -> None:
        """Opens the version to requests, with effect from the engine's next refresh."""
        self.enter(VersionPhase.READY)
        self.ready_at = time.time()

    def show_newer(self, failure: str, progress: LoadProgress | None, remark: str = "") -> None:
        """Shows, for a version that serves, why its newer files cannot be served, or else a `remark`.

        Also shows the progress of loading the newer files.
        """
        reason = f"the current files cannot be served, so the previous ones still are: {failure}"
        self._show(reason if failure else remark)
        self.model.progress = progress

    @property
    def resizing(self) -> bool:
        """Whether the number of worker processes is being changed."""
        return bool(self._resizing)

    @property
    def busy(self) -> bool:
        """Whether the version has requests in flight, or open sequences."""
        queue, sequences = self._queue, self.model.serving.sequences
        return queue is not None and (queue.pending > 0 or queue.running > 0 or sequences.open_sequences > 0)

    @property
    def last_used(self) -> float:
        """The time (time.time()) when the version last responded to a request or was opened to requests,
        whichever is later.
        """
        return max(self.ready_at, self.model.statistics.last_inference_ms / 1000)

    def update(self, config: ModelConfig) -> None:
        """Applies a changed configuration that needs no new load."""
        assert self._loaded is not None, "only what is loaded is updated"
        assert self._queue is not None, "what is loaded has a queue"
        assert self._maker is not None, "what is loaded has instances"
        groups = self.model.config.instance_groups
        self._config = config
        self.resize_failure = ""
        config = self._completed(config)
        before, self.model.config = self._loaded, config
        loaded = self._loaded = before.placed_again(config)
        regrouped = config.instance_groups != groups
        if regrouped and not loaded.follows(config):
            workers = f"{loaded.instances} worker process{'es' if loaded.instances > 1 else ''}"
            later = "the new instance_group takes effect at its next load"
            name, version = self.model.name, self.model.version
            log.warning("model '%s' version %s keeps running in %s: %s", name, version, workers, later)
        instances = None
        moved = (loaded.lane, loaded.instances) != (before.lane, before.instances)
        if loaded.resizes and regrouped:
            task = asyncio.get_running_loop().create_task(self._resize(loaded))
            self._resizing.add(task)
            task.add_done_callback(self._resize_ended)
        elif moved or regrouped:
            instances = self._maker.make(loaded)
        self._queue.update(settings_of(config, loaded, self._shared.options), instances=instances)
        self._tell(loaded)
        if instances is not None:
            self.model.placement = self._maker.placement(loaded, instances)

    def _resize_ended(self, task: asyncio.Task[None]) -> None:
        self._resizing.discard(task)
        self._on_resized()

    async def _resize(self, wanted: LoadedVersion) -> None:
        """Changes the number of worker processes while the version serves."""
        label = f"model '{self.model.name}' version {self.model.version}"
        try:
            await wanted.resize()
        except BacklineError as error:
            log.error("%s keeps its worker processes, as another could not be started: %s", label, error)
            self.resize_failure = error.message
        # The version may have been changed again or unloaded while the processes started.
        if self._loaded is None or self._maker is None or self._queue is None:
            return
        self._loaded = loaded = self._loaded.resized(self.model.config)
        try:
            instances = self._maker.make(loaded)
        except BacklineError as error:
            log.error("%s keeps its instances, as the new ones could not be created: %s", label, error)
            self.resize_failure = error.message
            return
        settings = settings_of(self.model.config, loaded, self._shared.options)
        self._queue.update(settings, instances=instances)
        self.model.placement = self._maker.placement(loaded, instances)
        log.info("%s now runs %s", label, loaded.reason)

    def fail(self, reason: str, retry_at: float | None) -> None:
        """Marks the load as failed, to be retried at `retry_at` (time.monotonic(); None for never)."""
        self.enter(VersionPhase.FAILED, reason)
        if self._load is not None:
            self._load.forget_calls()
        self.retry_at = retry_at
        self.model.progress = None

    def begin_drain(self) -> None:
        """Closes the version to requests, with effect from the engine's next refresh."""
        self.enter(VersionPhase.DRAINING)

    async def drain(self, limit: float) -> None:
        """Waits for the requests in flight to complete, then frees the model, unless some of its runs hang.

        After `limit` seconds, the requests that are still queued are refused, and streams are ended.
        """
        if self._queue is not None:
            ending = None
            if self.model.decoupled and isinstance(self._loaded, LoadedWorkers):
                # The model's code may go on with a stream although the request has ended.
                ending = asyncio.get_running_loop().call_later(limit, self._loaded.close)
            try:
                await self._queue.drain(limit)
            finally:
                if ending is not None:
                    ending.cancel()
        if self._maker is not None and self._maker.stuck:
            log.error(
                "the memory of model '%s' version %s cannot be freed: some of its runs have not ended",
                self.model.name,
                self.model.version,
            )
        elif self._loaded is not None:
            # The model is freed on a thread, because freeing a large model would block the loop.
            await asyncio.get_running_loop().run_in_executor(None, self._free, self._loaded)
        self._loaded = self._maker = None
        if self._load is not None:
            self._load.forget_calls()
        self.model.serving = NOT_SERVED
        self.model.memory_bytes = 0

    def _free(self, loaded: LoadedVersion) -> None:
        if self.kind.workers:
            loaded.close()
            return
        with self._shared.meter.freeing():
            loaded.close()

    def end(self) -> None:
        """Marks the load as unloaded. The planner does not know this phase, so the load must not be passed to
        the planner.
        """
        self.enter(VersionPhase.UNLOADED, "unloaded")
        self.ended_at = time.monotonic()

    def _move_to_threads(self) -> None:
        """Moves a model to threads because its runs block the event loop for too long; see InlineInstance."""
        if self.phase is not VersionPhase.READY:
            return
        assert self._loaded is not None, "what is ready is loaded"
        assert self._queue is not None, "what is ready has a queue"
        assert self._maker is not None, "what is ready has instances"
        model = self.model
        instances = self._maker.move_to_threads(self._loaded)
        self._queue.replace_instances(instances)
        limit = InlineInstance.LONG_RUN_NS / 1e6
        moved = f"some requests took longer than {limit:g} ms, so it was moved to threads"
        log.warning("model '%s' version %s ran on the event loop, but %s", model.name, model.version, moved)
        placement = self._maker.placement(self._loaded, instances)
        model.placement = replace(placement, reason=f"{placement.reason}; {moved}")
