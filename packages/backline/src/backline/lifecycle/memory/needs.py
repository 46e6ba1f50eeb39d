"""Predicts how much memory a load needs: as much as was measured at an earlier load, even before a restart of
the server, or else an estimate.
"""

from __future__ import annotations

import json
import logging
import posixpath
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec import Struct, field
from msgspec.structs import asdict, replace

from backline.backends.registry import choose_by_name
from backline.engine.config.model_config import ModelConfig
from backline_client.system.private_file import replacement
from backline_client.values.errors import BacklineError

log = logging.getLogger("backline.lifecycle")

MIB = 1 << 20
NEEDS_FILE = "memory.json"
#: The maximum number of models whose needs are kept; the oldest measurements are dropped first.
_MOST_MODELS = 10_000
#: The assumed ratio of memory to file size before any load was measured, and always for workers.
_FIRST_RATIO = 1.2
#: The weight of a new measurement in the moving average of the ratio of memory to file size.
_WEIGHT = 0.2
#: The memory that a load takes besides the model's, as a multiple of the file's size: while a runtime builds
#: the model, it also holds the contents of the file.
_COPIES_WHILE_LOADING = 1.2
#: The bytes that a worker process is assumed to need, in addition to the model's files, until a load is
#: measured: for the interpreter and NumPy and, with TorchServe, for PyTorch.
_WORKERS = {"python": 40 * MIB, "torchserve": 350 * MIB, "mlflow_pyfunc": 250 * MIB}
#: The bytes that the fork server, which tries files, is assumed to need in addition to the runtime.
_FORK_SERVER = 24 * MIB
#: The bytes that the import of a runtime is assumed to add to the server's process, until an import is
#: measured.
_RUNTIMES = {
    "onnxruntime": 48 * MIB,
    "pytorch": 512 * MIB,
    "tensorflow": 640 * MIB,
    "jax": 256 * MIB,
    "openvino": 128 * MIB,
    "litert": 64 * MIB,
    "xgboost": 96 * MIB,
    "lightgbm": 96 * MIB,
    "catboost": 96 * MIB,
    "sklearn": 128 * MIB,
    "mlflow": 256 * MIB,
}


class Need(Struct, frozen=True):
    """The memory of a model in bytes.

    `own` is what the loaded model holds and shares with no other process, and `peak` is the maximum that it
    holds during the load. `files` are the files that the workers map, with their resident bytes; libraries
    among them are shared with other workers. `gpus` has the bytes on each GPU. `runtime` is the part of
    `peak` that comes from importing the runtime into the server's process, and into the fork server that
    tries files. Unless `measured` is true, all values are estimates; `runtime` may be an estimate anyway.
    """

    own: int = 0
    peak: int = 0
    files: Mapping[str, int] = field(default_factory=dict)
    gpus: Mapping[int, int] = field(default_factory=dict)
    measured: bool = False
    runtime: int = 0

    @property
    def nothing(self) -> bool:
        return not self.peak and not self.gpus


class LoadKind(Struct, frozen=True):
    """The facts about a load that are known before the load begins.

    `key` depends on the files, on the settings that a load reads and, for a model in workers, on the number
    of workers. `backend` is "" if the files do not show which backend they need. `gpus` are the GPUs with a
    budget on which the model may be placed.
    """

    key: str
    backend: str
    file_bytes: int
    #: The number of worker processes; 0 for a model in the server's process.
    workers: int = 0
    gpus: tuple[int, ...] = ()


def load_kind(
    config: ModelConfig,
    fingerprint: str,
    model_file: str,
    files: Mapping[str, int],
    gpus: Collection[int] = (),
) -> LoadKind:
    """Returns what is known about the load of a version before the load begins.

    `model_file` is the path of the version's model file or folder; only its last part is used. `files` maps
    the paths of all files of the version to their sizes in bytes. `gpus` are the GPUs with a budget.
    """
    if config.ensemble is not None:
        return LoadKind(fingerprint, "", 0)
    count = sum(group.count for group in config.instance_groups if not group.passive) or config.instance_count
    entry = None
    with suppress(BacklineError):  # the load will report a backend that does not exist
        names = map(posixpath.basename, (model_file, *sorted(files)))
        entry = next(filter(None, (choose_by_name(config, name) for name in names)), None)
    hosted = entry is not None and (entry.hosted or (config.lane == "process" and bool(entry.runtime)))
    asked = {index for group in config.instance_groups if not group.passive for index in group.gpus}
    on_cpu = config.lane == "inline" or (
        bool(config.instance_groups) and all(group.kind == "cpu" for group in config.instance_groups)
    )
    return LoadKind(
        f"{fingerprint} {count or 0}" if hosted else fingerprint,
        entry.name if entry is not None else "",
        sum(files.values()),
        (count or 1) if hosted else 0,
        () if on_cpu else tuple(sorted(set(gpus) & asked if asked else gpus)),
    )


class Needs:
    """The needs of loads, by LoadKind.key. May be used on any thread.

    With a `file`, the measurements are kept for the server's next start. If the file cannot be read or
    written, the server logs a warning, and measures the models again after a restart.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._models: dict[str, Need] = {}
        self._runtimes: dict[str, int] = {}
        #: The runtimes that this process has imported.
        self._imported: set[str] = set()
        self._ratio = _FIRST_RATIO
        self._changed = False
        self._failed = False
        if file is not None:
            self._restore(file)

    def of(self, kind: LoadKind, *, starts_fork_server: bool = False) -> Need:
        """Returns the need of a load: measured, or else estimated from its kind and the size of its files.

        The load of a file that must be tried first may start a fork server.
        """
        with self._lock:
            need = self._models.get(kind.key)
            if need is None or not need.measured:
                estimate = self._estimate(kind)
                # A load that was stopped because it took too much memory needs at least as much as it held
                # when it was stopped.
                own = estimate.own if need is None else max(estimate.own, need.own)
                need = replace(estimate, own=own, peak=max(estimate.peak, own))
            if need.own and not kind.workers:
                runtime = self._import_of(kind.backend)
                if starts_fork_server:
                    runtime += _FORK_SERVER + self._size_of_runtime(kind.backend)
                need = replace(need, peak=need.peak + runtime, runtime=runtime)
            return need

    def _estimate(self, kind: LoadKind) -> Need:
        size = kind.file_bytes
        gpus = {index: int(size * self._ratio) for index in kind.gpus} if size else {}
        if kind.workers:
            one = _WORKERS.get(kind.backend, _WORKERS["python"])
            own = int((one + size * _FIRST_RATIO) * kind.workers)
            return Need(own, own, gpus=gpus)
        own = int(size * self._ratio)
        return Need(own, own + int(size * _COPIES_WHILE_LOADING), gpus=gpus)

    def _import_of(self, backend: str) -> int:
        if backend in self._imported:
            return 0
        return self._size_of_runtime(backend)

    def _size_of_runtime(self, backend: str) -> int:
        return self._runtimes.get(backend, _RUNTIMES.get(backend, 0))

    def own_estimate(self, kind: LoadKind) -> int:
        """Returns how many bytes the loaded model probably holds."""
        with self._lock:
            known = self._models.get(kind.key)
            return known.own if known is not None and known.measured else self._estimate(kind).own

    def imported(self, backend: str, grown: int | None = None) -> None:
        """Records that a runtime was imported, and by how many bytes the process has `grown`, if known."""
        with self._lock:
            if backend in self._imported:
                return
            self._imported.add(backend)
            if grown is not None:
                self._changed |= _differs(self._runtimes.get(backend, 0), grown)
                self._runtimes[backend] = grown

    def learn(self, kind: LoadKind, need: Need) -> None:
        """Stores the need of a load. A need that is not `measured` is a lower bound."""
        with self._lock:
            before = self._models.pop(kind.key, None)
            if before is not None and before.measured and need.measured:
                # Both measurements count equally, because requests that run during a load disturb the
                # measurement of the load.
                own = (before.own + need.own) // 2
                need = replace(need, own=own, peak=max(own, (before.peak + need.peak) // 2))
            self._models[kind.key] = need
            self._changed |= (
                before is None
                or before.measured != need.measured
                or _differs(before.own, need.own)
                or _differs(before.peak, need.peak)
            )
            if need.measured and kind.file_bytes and not kind.workers:
                # The ratio is limited, because a small model needs much memory relative to the size of its
                # file, and such a ratio says nothing about large models.
                ratio = min(need.own / kind.file_bytes, 4.0)
                self._ratio += (ratio - self._ratio) * _WEIGHT

    def save(self) -> None:
        """Writes the needs if anything was learned since the last call. Blocks. Several threads may call this
        concurrently.
        """
        file = self._file
        if file is None:
            return
        with self._saving:
            with self._lock:
                if not self._changed:
                    return
                self._changed = False
                kept = list(self._models.items())[-_MOST_MODELS:]
                text = json.dumps(
                    {
                        "models": {key: asdict(need) for key, need in kept},
                        "runtimes": self._runtimes,
                        "ratio": self._ratio,
                    }
                )
            try:
                file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with replacement(file) as new:
                    new.write_text(text, encoding="utf-8")
                self._failed = False
            except OSError as error:
                if not self._failed:  # logged once, not with every load
                    log.warning("the measured memory of models cannot be kept in '%s': %s", file, error)
                self._failed = True

    def _restore(self, file: Path) -> None:
        try:
            found = json.loads(file.read_bytes())
            self._models = {str(key): _read_need(need) for key, need in found["models"].items()}
            self._runtimes = {str(name): int(size) for name, size in found["runtimes"].items()}
            self._ratio = min(max(float(found["ratio"]), 0.5), 4.0)
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            log.warning(
                "the measured memory of models in '%s' cannot be used, so they are measured again: %s",
                file,
                error,
            )
            self._models, self._runtimes = {}, {}


def _read_need(found: Any) -> Need:
    return Need(
        int(found["own"]),
        int(found["peak"]),
        {str(name): int(size) for name, size in found["files"].items()},
        {int(index): int(size) for index, size in found["gpus"].items()},
        bool(found["measured"]),
    )


def _differs(before: int, now: int) -> bool:
    return abs(now - before) > max(before // 50, MIB)
