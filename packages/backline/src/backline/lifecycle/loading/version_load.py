"""Loads a version on a thread: from its files to a model that has run its warm-up requests."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from backline.backends.backend import HostedModel, LoadOptions, needs_worker
from backline.backends.plugin import BackendPlugin
from backline.backends.registry import choose, describe_runtime
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Places
from backline.engine.model import Model
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.lifecycle.loading.loaded import LoadedVersion, Measured
from backline.lifecycle.loading.loader import LoadHost, load
from backline.lifecycle.loading.measurement_file import MeasurementFile
from backline.lifecycle.loading.shared import Shared
from backline.lifecycle.loading.warm_up import TENSORFLOW_FILE, warm_up, warm_up_items, warm_up_samples
from backline.lifecycle.memory.meter import LoadMemory, measure_workers
from backline.lifecycle.memory.needs import LoadKind
from backline.lifecycle.options import runs_apart
from backline.observe.recording import recorded_file
from backline.repository.fingerprint import load_key
from backline.repository.repository import FetchedVersion, FoundVersion
from backline.schedule.sequences.tensors import SequenceTensors
from backline.system.cores import check_cores, pinned
from backline.system.small_file import read_file
from backline.workers.model_in_workers import ModelInWorkers
from backline_client.values.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from backline.lifecycle.loading.isolation.trial_processes import TrialWatch
    from backline.lifecycle.loading.worker_pools import Completion, RuntimeLimits, WorkerStarter

log = logging.getLogger("backline.lifecycle")

#: Triton's defaults for an ONNX model whose configuration does not set them: the maximum batch size, and the
#: number of instances on the CPU.
_TRITON_BATCH, _TRITON_INSTANCES = 4, 2

#: Checks a request against the signature; raises InvalidArgument if it does not match.
Check: TypeAlias = Callable[[Ticket], None]


class WarmModel(Struct, frozen=True):
    """The result of a load: a model that has run its warm-up requests, and what was learned about it."""

    loaded: LoadedVersion
    check: Check
    memory: LoadMemory
    #: The hidden tensors of a model that serves sequences, otherwise None.
    tensors: SequenceTensors | None
    #: The parts of the configuration that the model completed.
    completion: Completion | None
    #: A digest of the configuration and files, the same on every server; empty if unknown or not needed.
    content: str


class VersionLoad(LoadHost):
    """The load of one version. Call `run` on a thread, and everything else on the event loop.

    `config` is the configuration as written, before the model completes it. `known` holds the measurements of
    an earlier load of the same files. `from_elsewhere` says whether the files come from a remote repository
    or a load request; such files are not trusted.
    """

    def __init__(
        self,
        shared: Shared,
        model: Model,
        config: ModelConfig,
        version: FoundVersion,
        fetched: FetchedVersion,
        known: Measured | None,
        kind: LoadKind,
        *,
        from_elsewhere: bool,
    ) -> None:
        self._shared = shared
        self._model = model
        self._config = config
        self._version = version
        self._fetched = fetched
        self._known = known
        self._kind = kind
        self._from_elsewhere = from_elsewhere
        self._may_run_code = shared.options.trust_remote_code or not from_elsewhere
        self._kept: MeasurementFile | None = None
        self._loop = asyncio.get_running_loop()
        self._starter: WorkerStarter | None = None
        self._trial: TrialWatch | None = None
        self._cancelled = False

    def run(self) -> WarmModel:
        """Loads the model. This may take minutes. Raises BacklineError when the model cannot be served."""
        self._fetched.check()
        apart = runs_apart(self._shared.options.isolate, from_elsewhere=self._from_elsewhere)
        entry = choose(self._config, self._fetched.path)
        if entry.runtime and (apart or self._needs_worker(entry)):
            self._config = replace(self._config, lane="process")
            self._kind = replace(self._kind, workers=max(self._kind.workers, 1))
        if self._shared.options.onnx_as_triton:
            self._config = as_in_triton(self._config, self._fetched.path)
        if self._shared.options.memory_budget is not None and self._config.lone_run_threads is None:
            # A copy for lone runs would take memory from other models, and the memory that a load needs would
            # depend on whether a copy was chosen in the previous load.
            self._config = replace(self._config, lone_run_threads=1)
        cached = self._shared.cache is not None and self._config.response_cache
        content = self._content("its responses are cached for this load only", read=True) if cached else None
        config, options = self._config, self._shared.options
        check_cores(config.name, config.cpus)
        self._kept = kept = MeasurementFile(
            self._shared.state_folder,
            config,
            self._version.version,
            lambda: content or self._content("it is measured at each start"),
        )
        load_options = LoadOptions(
            trust_pickle=options.trust_pickle or self._is_trusted_by_name(),
            trust_skops_types=frozenset(options.trust_skops_types),
            may_run_code=self._may_run_code,
            strict_devices=options.strict_devices,
            run_cores=1 if self._shared.cores is None else self._shared.cores.cores,
        )
        known = self._proved(kept, load_options)
        # A model in a worker is measured below instead, because loading it does not increase this process's
        # memory.
        measuring = nullcontext() if self._kind.workers else self._shared.meter.measure(self._kind)
        with measuring as memory, pinned(config.cpus):
            loaded = load(
                self._fetched.path,
                config,
                known,
                self,
                load_options,
                warm_up_items(config, self._fetched.model_folder),
            ).continue_sequences(self._version.version, self._shared.remote_sequences)
            if known is None:
                file_bytes = sum(file.size for file in self._version.files.values())
                kept.keep_if_dearer(loaded.measured, loaded.placed, file_bytes)
            completion = None if self._starter is None else self._starter.completion
            if completion is not None:
                config = completion.apply(config)
            try:
                self.on_phase("warm-up")
                check, tensors = warm_up_version(
                    config,
                    loaded,
                    self._fetched.path if self._has_tensorflow_file else None,
                    self._fetched.model_folder,
                    recorded_file(self._shared.state_folder, config.name),
                )
            except BaseException:
                loaded.close()
                raise
        # If a file was written during the load, the digest may not describe the model that was loaded.
        unchanged = content is not None and content.unchanged
        digest = f"{load_key(self._config)} {content.digest}" if content is not None and unchanged else ""
        if memory is None:
            memory = measure_workers(self._kind, loaded.pids, self._shared.held)
        return WarmModel(loaded, check, memory, tensors, completion, digest)

    def _needs_worker(self, entry: BackendPlugin) -> bool:
        """Returns whether a worker process must load the files. A program that serves its own model does so
        itself: it has imported what the model needs, and may define what the model's file refers to.
        """
        own = self._config.name in self._shared.options.own_models
        return not own and needs_worker(entry.backend(), self._fetched.path, self._config)

    @property
    def pids(self) -> list[int]:
        """The ids of the worker processes that the load has started."""
        return [] if self._starter is None else self._starter.pids

    def _proved(self, kept: MeasurementFile, options: LoadOptions) -> Measured | None:
        """Tries the files in another process, unless the option `isolate` requires no trial of these files,
        they have already passed one, or this process does not read them.

        Returns the measurements, or None if there are none yet. Raises BacklineError if the trial fails.
        """
        isolate = self._shared.options.isolate
        if isolate == "never" or (isolate in ("remote", "workers") and not self._from_elsewhere):
            return self._known
        path, config = self._fetched.path, self._config
        entry = choose(config, path)
        if not entry.runtime or config.lane == "process":  # nothing in this process reads the model's files
            return self._known
        if isolate != "always" and (known := self._known or kept.recall_anywhere()) is not None:
            return known
        # Imported late, because servers whose files are known need none of this.
        from backline.lifecycle.loading.isolation.messages import TrialJob
        from backline.lifecycle.loading.isolation.trial_processes import TrialLimits, TrialWatch

        job = TrialJob(
            path,
            self._fetched.model_folder,
            replace(config, declared=b""),
            options,
            recorded_file(self._shared.state_folder, config.name),
            entry.imports_for(path),
        )
        limits = TrialLimits.of(
            sum(file.size for file in self._version.files.values()),
            seconds=self._shared.options.load_timeout_seconds,
            memory=self._shared.options.load_memory_limit,
        )
        kept.hold()
        self._trial = TrialWatch(self.on_phase)
        if self._cancelled:  # cancelled before there was a trial
            self._trial.cancel()
        passed = self._shared.trials().try_out(job, describe_runtime(entry), limits, self._trial)
        kept.keep(passed.measured, passed.devices)
        if not kept.unchanged:
            raise Unavailable(
                f"the files of model '{config.name}' version {self._version.version} changed while they were"
                " being tried: load the model again"
            )
        return passed.measured

    def cancel(self) -> None:
        """Stops waiting for a trial or for workers to start, because the version is no longer wanted."""
        self._cancelled = True
        if self._trial is not None:
            self._trial.cancel()
        if self._starter is not None:
            self._starter.cancel()

    def forget_calls(self) -> None:
        """Removes the model's custom metrics. Call it once the model can make no more calls to the server."""
        if self._starter is not None:
            self._starter.calls.forget()

    def start_workers(self, hosted: HostedModel, placed: Places) -> tuple[ModelInWorkers, ModelConfig]:
        # Imported late, because only models in workers need this code.
        from backline.lifecycle.loading.worker_pools import RuntimeLimits, WorkerStarter

        self._starter = self._starter or WorkerStarter(
            self._shared,
            self._model,
            self._config,
            self._fetched.model_folder,
            self._loop,
            host=self,
            limits=self._runtime_limits() if hosted.job else RuntimeLimits(),
        )
        if self._cancelled:  # cancelled before there was a starter
            self._starter.cancel()
        return self._starter.start(hosted, placed)

    def _runtime_limits(self) -> RuntimeLimits:
        """Returns the limits of a worker that loads the files. For files from a remote repository or a load
        request, these are the limits of a trial.
        """
        from backline.lifecycle.loading.isolation.trial_processes import TrialLimits
        from backline.lifecycle.loading.worker_pools import RuntimeLimits

        options = self._shared.options
        if not self._from_elsewhere:
            return RuntimeLimits(options.load_timeout_seconds)
        limits = TrialLimits.of(
            sum(file.size for file in self._version.files.values()),
            seconds=options.load_timeout_seconds,
            memory=options.load_memory_limit,
        )
        return RuntimeLimits(limits.seconds, limits.memory)

    def _is_trusted_by_name(self) -> bool:
        """Returns whether pickles of a model with this name are trusted. They are not if the files come from
        a remote repository or a load request, unless the server trusts remote code.
        """
        patterns = self._shared.options.trust_pickle_models
        return self._may_run_code and any(fnmatchcase(self._config.name, one) for one in patterns)

    @property
    def _has_tensorflow_file(self) -> bool:
        return any(name.endswith(TENSORFLOW_FILE) for name in self._version.files)

    def _content(self, otherwise: str, *, read: bool = False) -> VersionContent | None:
        """Returns the content of the files. Results that outlive this load, such as cached responses, are
        stored under its digest, so they are never used for other files.

        With `read`, the digest is made now. Returns None if the version has no files, or if they cannot be
        read. In the latter case, logs a warning with the consequence, `otherwise`.
        """
        if self._version.path is None:
            return None
        try:
            content = VersionContent(self._fetched.root, self._version.files)
            if read:
                _ = content.digest
            return content
        except OSError as error:
            model = self._model
            log.warning("model '%s' version %s: %s: %s", model.name, model.version, otherwise, error)
            return None

    def on_phase(self, phase: str) -> None:
        if self._model.progress is not None:
            self._model.progress.phase = phase

    def on_bytes(self, done: int, total: int) -> None:
        progress = self._model.progress
        if progress is not None:
            progress.bytes_done, progress.bytes_total = done, total

    def recall(self, placed: Places) -> Measured | None:
        return None if self._kept is None else self._kept.recall(placed)


def as_in_triton(config: ModelConfig, path: Path) -> ModelConfig:
    """Returns the configuration, completed with the defaults of Triton's ONNX Runtime backend."""
    if choose(config, path).name != "onnxruntime":
        return config
    return replace(config, proved_batch=_TRITON_BATCH, usual_instances=_TRITON_INSTANCES)


#: Files up to this size, in bytes, are read in one step to compute their digest.
_READ_WHOLE = 1 << 20
#: Files that were written more recently than this, in nanoseconds, are recognised only by their content.
_SETTLED_NS = 2_000_000_000


class VersionContent:
    """The content of the files `names` below `root`.

    May be used on any thread. Raises OSError when a file cannot be read.
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        # Paths are strings, because pathlib objects would add a tenth to the load time of a small model.
        self._files = {name: os.path.join(root, name) for name in sorted(names)}
        self._made = time.time_ns()
        self._before = self._state()

    @property
    def size(self) -> int:
        """The total size of the files in bytes."""
        return sum(size for _, size, _, _ in self._before)

    @property
    def identity(self) -> str:
        """A text that tells, without reading the files, that they are the same files as at another time.

        Empty if a file was written just now, because another write in the same tick of the clock would not
        change its times.
        """
        if any(max(times) > self._made - _SETTLED_NS for _, _, *times in self._before):
            return ""
        return hashlib.sha256(
            repr((list(self._files), self._before)).encode("utf-8", "surrogatepass")
        ).hexdigest()

    @cached_property
    def digest(self) -> str:
        """A digest by which servers with a common cache recognise equal files. Reads the files."""
        digest = hashlib.sha256()
        for (name, path), (_, size, _, _) in zip(self._files.items(), self._before, strict=True):
            digest.update(f"{name!r}:".encode("utf-8", "surrogatepass"))
            if size <= _READ_WHOLE:
                of_file = hashlib.sha256(read_file(path, size + 1))
            else:
                with open(path, "rb", buffering=0) as file:
                    of_file = hashlib.file_digest(file, "sha256")
            digest.update(of_file.digest())
        return digest.hexdigest()

    @property
    def unchanged(self) -> bool:
        """Whether no file has been written or replaced since this object was created."""
        return self._state() == self._before

    def _state(self) -> list[tuple[int, int, int, int]]:
        found = [os.stat(path) for path in self._files.values()]
        return [(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in found]


def request_check(config: ModelConfig, loaded: LoadedVersion) -> Check:
    """Returns the check that raises InvalidArgument for requests that do not match the loaded model."""
    limit = sys.maxsize if config.split_large_batches else loaded.max_batch_size
    strict, probe = config.max_batch_size is not None, loaded.measured.probe
    proved = not strict and probe is not None and probe.batched
    return loaded.extend(RequestCheck(config.name, loaded.signature, limit, strict=strict, proved=proved))


def warm_up_version(
    config: ModelConfig, loaded: LoadedVersion, path: Path | None, model_folder: Path, recorded: Path
) -> tuple[Check, SequenceTensors | None]:
    """Runs the warm-up samples of a loaded version. `path` is its file or folder, or None if it has no
    warm-up file of TensorFlow Serving.

    Returns the check for its requests, and the hidden tensors of a model that serves sequences (None for
    other models). Raises BacklineError if the configuration does not fit the model, or a sample fails.
    """
    _refuse_streams(config, loaded)
    check = request_check(config, loaded)
    batched = loaded.max_batch_size > 0
    tensors = loaded.states.prepare(batched=batched, model_folder=model_folder)
    outputs = tuple(spec.name for spec in loaded.states.model.outputs)
    version_folder = path.parent if path is not None and path.is_file() else path
    for run in loaded.lone_runs():
        samples = warm_up_samples(
            config,
            batched=batched,
            version_folder=version_folder,
            model_folder=model_folder,
            recorded=recorded,
        )
        warm_up(config.name, run, outputs, check, samples)
    return check, tensors


def _refuse_streams(config: ModelConfig, loaded: LoadedVersion) -> None:
    """Raises InvalidArgument for settings that a decoupled model cannot have."""
    if not loaded.decoupled:
        return
    if config.objective_seconds is not None:
        raise InvalidArgument(
            f"model '{config.name}' is decoupled, so it cannot have a latency objective: remove the"
            " objective from the configuration"
        )
    if config.response_cache:  # Triton's text
        raise InvalidArgument(
            f"Response Cache does not currently support model {config.name} with 'decoupled' transaction"
            " policy. Please disable the response cache."
        )
