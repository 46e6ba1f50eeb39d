"""The life of one version: fetched, loaded, warmed up, served, drained, unloaded."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor as Threads
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeAlias
from uuid import uuid4

from backline.backends.backend import StreamingModel
from backline.engine.decoupled import DecoupledCheck
from backline.engine.engine import LoadProgress, Model, ModelState
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.joining import JoiningCheck
from backline.engine.messages import InferRequest
from backline.engine.model_config import ModelConfig
from backline.engine.signature import RequestCheck
from backline.engine.statistics import ModelStatistics
from backline.lifecycle.completion import Completion
from backline.lifecycle.content import Content
from backline.lifecycle.instances import InstanceMaker
from backline.lifecycle.joined import JoinedModel
from backline.lifecycle.loader import Loaded, Measured, load, place_again
from backline.lifecycle.memory import LoadMeter
from backline.lifecycle.plan import Held, Phase
from backline.lifecycle.queueing import VersionQueue, build_queue, build_sequence_queue, settings_of
from backline.lifecycle.sequence_states import FirstSteps, sequence_tensors
from backline.lifecycle.warm_up import warm_up
from backline.lifecycle.warm_up_samples import warm_up_samples
from backline.lifecycle.worker_pools import WorkerStarter
from backline.repository.fingerprint import load_key
from backline.repository.repository import FetchedVersion, FoundVersion, OnBytes
from backline.schedule.cache import ResponseCache
from backline.schedule.deadline_queue import with_deadline
from backline.schedule.permits import Permits
from backline.schedule.sequence_tensors import SequenceTensors
from backline.schedule.state_store import MemoryStateStore, StateStore
from backline.schedule.total import QueueTotal
from backline.workers.affinity import check_cores, pinned
from backline.workers.core_budget import CoreBudget
from backline.workers.environments.store import Environments
from backline.workers.instance import InlineInstance
from backline.workers.process.calls import Calls
from backline.workers.process.pool import WorkerPool
from backline.workers.streaming import StreamPool

log = logging.getLogger("backline.lifecycle")

#: Raises InvalidArgument for a request that does not fit.
Check: TypeAlias = Callable[[InferRequest], None]
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
        environments: Environments,
        debugged: bool = False,
        statistics: ModelStatistics | None = None,
        total: QueueTotal | None = None,
        permits: Permits | None = None,
        cores: CoreBudget | None = None,
        states: StateStore | None = None,
        cache: ResponseCache | None = None,
        meter: LoadMeter | None = None,
        recorded: Path | None = None,
        attempt: int = 1,
        beside_serving: bool = False,
        at_start: bool = False,
        trust_pickle: bool = False,
        refresh: Callable[[], None] = lambda: None,
        on_given_up: Callable[[Model, str], None] = lambda _, reason: None,
        may_run_code: bool = True,
        may_complete: bool = True,
        calls: Callable[[Model], Calls] | None = None,
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
        #: Without what the model has completed.
        self._config = config
        self._completion: Completion | None = None
        self._may_complete = may_complete
        self.model.state = ModelState.LOADING
        if statistics is not None:
            self.model.statistics = statistics
        self._version = version
        self._meter = meter or LoadMeter()
        self._recorded = recorded
        self._total = total
        self._permits = permits
        self._cores = cores
        self._states = states or MemoryStateStore()
        self._cache = cache
        #: What answers are kept for: this load, until it is known what its files hold.
        self._answers_of = f"load {uuid4()}"
        self._tensors: SequenceTensors | None = None
        self._trust_pickle = trust_pickle
        #: Called when the state of the model has changed by itself.
        self._refresh = refresh
        #: Called when an instance was given up and replaced.
        self._on_given_up = on_given_up
        self._may_run_code = may_run_code
        self._calls = None if calls is None else calls(self.model)
        self._environments = environments
        self._debugged = debugged
        self._fetch = fetch
        self._loaded: Loaded | None = None
        self._queue: VersionQueue | None = None
        self._maker: InstanceMaker | None = None

    def held(self) -> Held:
        """What the planner sees."""
        model = self.model
        return Held(self.key, model.name, model.version, self.fingerprint, self.phase, self._config, self.retry_at)

    async def load(self, threads: Threads, known: Measured | None) -> None:
        """Fetches, loads and warms up; `known` is what an earlier load of the same files measured. Raises BacklineError with the reason."""
        if self._version.problem:
            raise InvalidArgument(self._version.problem)
        began = time.monotonic()
        progress = self.model.progress = LoadProgress("fetch", began)

        def on_bytes(done: int, total: int) -> None:
            progress.bytes_done, progress.bytes_total = done, total

        fetched = await self._fetch(on_bytes)
        loop = asyncio.get_running_loop()
        starter = WorkerStarter(
            self._config,
            self.model.version,
            fetched.model_folder,
            loop,
            self._environments,
            may_run_code=self._may_run_code,
            on_phase=self._on_phase,
            on_bytes=on_bytes,
            calls=self._calls,
            debugged=self._debugged,
            may_complete=self._may_complete,
        )
        loading = loop.run_in_executor(threads, self._load, fetched, known, starter)
        try:
            loaded, check, self.model.memory_bytes = await asyncio.shield(loading)
        except asyncio.CancelledError:
            starter.cancel()
            loading.add_done_callback(_discard)  # a runtime cannot be interrupted
            raise
        if (completion := starter.completion) is not None:
            self._completion, self.model.config = completion, completion.apply(self._config)
        for warning in loaded.warnings:
            log.warning("%s", warning)
        if self.model.config.response_cache and self._cache is None:
            log.warning(
                "model '%s' version %s asks for the response cache, but the server has none and runs every request:"
                " start it with --cache-config local,size=64MiB",
                self.model.name,
                self.model.version,
            )
        try:
            self._start(loaded, check)
        except BacklineError:
            await loop.run_in_executor(None, loaded.model.close)
            raise
        self.model.progress = None
        self.model.statistics.load_seconds = time.monotonic() - began
        self.phase = Phase.LOADED

    def _load(self, fetched: FetchedVersion, known: Measured | None, starter: WorkerStarter) -> tuple[Loaded, Check, int]:
        """On a thread. The last of the results is the memory that it took, in bytes."""
        content = self._content(fetched)
        check_cores(self.model.name, self.model.config.cpus)
        with self._meter.measure(self.file_bytes) as measured, pinned(self.model.config.cpus):
            loaded, check = self._load_and_warm_up(fetched, known, starter)
        if content is not None and content.unchanged:
            self._answers_of = f"{load_key(self.model.config)} {content.digest}"
        memory = loaded.model.resident_bytes if isinstance(loaded.model, WorkerPool) else measured.memory
        return loaded, check, memory

    def _content(self, fetched: FetchedVersion) -> Content | None:
        """What the files hold, where answers are kept that must not be another file's."""
        if self._cache is None or not self.model.config.response_cache or self._version.path is None:
            return None
        root = fetched.path
        for _ in PurePosixPath(self._version.path).parts:
            root = root.parent
        try:
            return Content(root, self._version.files)
        except OSError as error:
            log.warning("answers of model '%s' version %s are not kept beyond this load: %s", self.model.name, self.model.version, error)
            return None

    def _load_and_warm_up(self, fetched: FetchedVersion, known: Measured | None, starter: WorkerStarter) -> tuple[Loaded, Check]:
        config = self._config
        loaded = load(fetched.path, replace(config, trust_pickle=self._trust_pickle), known, self._on_phase, starter.start)
        if starter.completion is not None:
            config = starter.completion.apply(config)
        try:
            _refuse_streams(config, loaded)
            check = _check(config, loaded)
            self._on_phase("warm-up")
            samples = warm_up_samples(
                config,
                batched=loaded.max_batch_size > 0,
                version_folder=fetched.path if fetched.path.is_dir() else fetched.path.parent,
                model_folder=fetched.model_folder,
                recorded=self._recorded,
            )
            model = loaded.model
            if loaded.joiner is not None and not isinstance(model, (StreamingModel, WorkerPool)):
                model = JoinedModel(model, loaded.joiner, loaded.signature)
            if config.sequence is not None:
                batched = loaded.max_batch_size > 0
                self._tensors = sequence_tensors(config, model.signature, batched=batched, model_folder=fetched.model_folder)
                if not isinstance(model, StreamingModel):
                    model = FirstSteps(model, self._tensors, batched=batched)
            warm_up(config.name, model, check, samples)
        except BaseException:
            loaded.model.close()
            raise
        return loaded, check

    def _on_phase(self, phase: str) -> None:
        if self.model.progress is not None:
            self.model.progress.phase = phase

    def _start(self, loaded: Loaded, check: Check) -> None:
        """Puts a loaded model behind a queue."""
        model = self.model
        self._loaded = loaded
        self.measured = loaded.measured
        self._maker = maker = InstanceMaker(
            model,
            self._permits,
            self._cores,
            on_slow=self._move_to_threads,
            on_available=self._on_available,
            on_ready=self._on_ready,
            on_given_up=lambda reason: self._on_given_up(model, reason),
        )
        instances = maker.make(loaded)
        if self._tensors is not None:
            self._queue = model.sequences = build_sequence_queue(model, loaded, instances, self._tensors, self._states, self._total)
        else:
            self._queue = build_queue(model, loaded, instances, self._total, cache=self._cache, fingerprint=self._answers_of)
        model.backend = loaded.backend
        model.platform = loaded.platform
        model.signature = loaded.signature
        model.max_batch_size = loaded.max_batch_size
        model.placement = maker.placement(loaded, instances)
        model.decoupled = loaded.model.loaded.decoupled if isinstance(loaded.model, WorkerPool) else model.config.decoupled
        model.check = DecoupledCheck(model.name, check) if model.decoupled else check
        model.queue = with_deadline(self._queue, model.config.default_deadline_seconds)

    def _on_available(self, reason: str) -> None:
        """Nothing can run the model any more, for a reason, or something can again."""
        if self.phase is Phase.READY:
            self.model.state = ModelState.UNAVAILABLE if reason else ModelState.READY
            self.model.reason = reason
            self._refresh()

    def _on_ready(self, reason: str) -> None:
        """The model says of itself that it is not ready, or is again; its requests are answered all the same."""
        self.model.unready = reason
        if self.phase is Phase.READY:
            self._refresh()

    def serve(self) -> None:
        """From now on it takes requests, once the engine knows it."""
        self.phase = Phase.READY
        self.model.state = ModelState.READY
        self.ready_at = time.time()

    @property
    def busy(self) -> bool:
        """Whether it has requests."""
        queue, sequences = self._queue, self.model.sequences
        return queue is not None and (queue.pending > 0 or queue.running > 0 or (sequences is not None and sequences.open_sequences > 0))

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
        if self._completion is not None:
            config = self._completion.apply(config)
        before, self.model.config = self._loaded, config
        loaded = self._loaded = place_again(before, config)
        instances = None
        if (loaded.lane, loaded.instances) != (before.lane, before.instances) or config.instance_groups != groups:
            instances = self._maker.make(loaded)
        self._queue.update(settings_of(config, loaded), instances=instances)
        if instances is not None:
            self.model.placement = self._maker.placement(loaded, instances)

    def fail(self, reason: str, retry_at: float | None) -> None:
        """Its load has failed, and is tried again at `retry_at` if that is a time."""
        self.phase = Phase.FAILED
        if self._calls is not None:
            self._calls.forget()
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
            ending = None if streams is None else asyncio.get_running_loop().call_later(limit, self._end_streams, streams)
            await self._queue.drain(limit)
            if ending is not None:
                ending.cancel()
        if self._maker is not None and self._maker.stuck:
            log.error("the memory of model '%s' version %s is not given back: runs of it do not end", self.model.name, self.model.version)
        elif self._loaded is not None:
            # Tearing a large model down takes long enough to keep others waiting.
            await asyncio.get_running_loop().run_in_executor(None, self._loaded.model.close)
        self._loaded = self._maker = None
        if self._calls is not None:
            self._calls.forget()
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


def _check(config: ModelConfig, loaded: Loaded) -> Check:
    limit = sys.maxsize if config.split_large_batches else loaded.max_batch_size
    check = RequestCheck(config.name, loaded.signature, limit, strict=config.max_batch_size is not None)
    if loaded.joining is None:
        return check
    return JoiningCheck(check, loaded.joining, tuple(spec.name for spec in loaded.signature.inputs))


def _refuse_streams(config: ModelConfig, loaded: Loaded) -> None:
    """Refuses what streams have not, where the model's file makes it one, and not its configuration, which is checked when it is read."""
    model = loaded.model
    if not isinstance(model, StreamingModel) and not (isinstance(model, WorkerPool) and model.loaded.decoupled):
        return
    if config.objective_seconds is not None:
        raise InvalidArgument(f"model '{config.name}' gives any number of responses, which have no end that an objective could be for")
    if config.response_cache:  # the words are Triton's
        raise InvalidArgument(
            f"Response Cache does not currently support model {config.name} with 'decoupled' transaction policy."
            " Please disable the response cache."
        )


def _discard(loading: asyncio.Future[tuple[Loaded, Check, int]]) -> None:
    """Closes what was loaded for nobody."""
    if not loading.cancelled() and loading.exception() is None:
        loading.result()[0].model.close()
