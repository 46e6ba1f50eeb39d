"""Measures how much memory the server and its workers hold, and how much loads take: in the server's process
by how much it grows, in workers by counting their pages.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from msgspec import Struct, field

from backline.backends.runtime import grown_by_imports
from backline.lifecycle.memory.needs import LoadKind, Need, Needs
from backline.lifecycle.memory.room import union_of_files
from backline.system.memory import trim
from backline.system.process_memory import (
    Footprint,
    Footprints,
    PageCounts,
    count_pages,
    peak_bytes,
    proportional_bytes,
    restart_peak,
    sessions,
)

if TYPE_CHECKING:
    from backline.lifecycle.memory.gpu_budgets import GpuBudgets


class Held(Struct, frozen=True):
    """The memory that the server's process and its workers hold at one moment, in bytes.

    `server` counts only memory that is not shared with a worker, and no mapped files, whose resident bytes
    are in `server_files`. `workers` has the footprint of each worker that has not ended, by its process id.
    `gpus` has the memory on each GPU, by the GPU's number and the process id. `trials` is the memory of the
    processes that try model files before the server loads them.
    """

    server: int
    server_files: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[int, Footprint] = field(default_factory=dict)
    gpus: Mapping[int, Mapping[int, int]] = field(default_factory=dict)
    trials: int = 0


class HeldMemory:
    """Reads how much memory the server and its workers hold. Call the methods on a thread, because a read
    takes milliseconds. `trials` returns the ids of the processes that try model files.
    """

    def __init__(self, gpus: GpuBudgets | None = None, trials: Callable[[], Collection[int]] = tuple) -> None:
        self._footprints = Footprints()
        self._gpus = gpus
        self._trials = trials
        self._lock = threading.Lock()

    def __call__(self, pids: Collection[int]) -> Held:
        """Reads the memory of this process and of the workers with these ids."""
        workers = self.of_workers(pids)
        with self._lock:
            self._footprints.forget_others(pids)
            server = self._footprints.read_one()
        # The server also maps the blocks through which workers receive tensors. Their memory counts for the
        # workers only.
        shared = min(server.shared, sum(one.shared for one in workers.values()))
        trials = _proportional_bytes(self._trials())
        return Held(server.own - shared, server.files, workers, self.on_gpus(pids), trials)

    def of_workers(self, pids: Collection[int]) -> Mapping[int, Footprint]:
        """Returns the footprints of the workers with these ids, each including the processes that the worker
        started.
        """
        with self._lock:
            return self._footprints.read(pids)

    def on_gpus(self, pids: Collection[int] = ()) -> Mapping[int, Mapping[int, int]]:
        """Returns the bytes that this process and the workers with these ids hold on GPUs with a budget, by
        GPU and process id.
        """
        return {} if self._gpus is None else self._gpus.read(pids)


#: A load that imports at least this many modules must have imported its runtime. The memory of a runtime does
#: not count as the model's.
_MODULES_OF_A_RUNTIME = 8


class LoadMemory:
    """The memory of one model. `need` is measured in workers, and in the server's process if nothing
    disturbed the measurement (see LoadMeter); otherwise it is estimated.
    """

    def __init__(self, kind: LoadKind, need: Need) -> None:
        self.kind = kind
        self.need = need
        #: The bytes to show as the model's memory.
        self.shown = need.own
        #: Called on any thread when `shown` has become more accurate, because all overlapping loads have
        #: ended.
        self.on_change: Callable[[], None] = lambda: None


class LoadMeter:
    """Measures the memory that loads take in this process. May be used on any thread.

    The memory of a load that ran alone is the growth of resident memory, or the size of the model's files if
    that is larger, because a load that reuses freed memory causes less growth. Overlapping loads share the
    growth in proportion to their estimates, once the last of them has ended. Importing a runtime is not
    counted. A load is not measured if another model was freed during the load, because the process then grew
    by less than the load took.
    """

    def __init__(
        self,
        needs: Needs,
        held: HeldMemory,
        resident: Callable[[], int] = lambda: _own(count_pages()),
        peak: Callable[[], int] = lambda: peak_bytes() - count_pages().shared,
        restart: Callable[[], bool] = restart_peak,
        imported: Callable[[], int] = grown_by_imports,
        trim: Callable[[], object] = trim,
    ) -> None:
        self._needs = needs
        self._held = held
        self._resident = resident
        self._peak = peak
        self._restart = restart
        self._imported = imported
        self._trim = trim
        self._lock = threading.Lock()
        #: All loads that have begun since no load was running. They overlap, so their memory can only be
        #: measured together.
        self._together: list[LoadMemory] = []
        self._running = 0
        self._before = 0
        self._gpus_before: Mapping[int, int] = {}
        self._modules = self._imports_before = 0
        self._counts_peak = False
        self._disturbed = False
        #: The number of models that are being freed.
        self._freeing = 0
        #: Whether a model has been freed since the last trim began.
        self._untrimmed = False
        #: Whether any model was freed since the first of the overlapping loads began.
        self._freed = False

    @contextmanager
    def freeing(self) -> Iterator[None]:
        """Marks the `with` block as code that frees a model in this process, so that loads are not measured
        during the block. Afterwards, returns the freed memory to the operating system.
        """
        with self._lock:
            self._freeing += 1
            self._freed = True
        try:
            yield
        finally:
            with self._lock:
                self._untrimmed = True
            self._end_freeing()

    def _end_freeing(self) -> None:
        # Of several overlapping blocks, only the last one to end trims. A server that stops frees all its
        # models at once, and a trim for each of a thousand models would take seconds.
        while True:
            with self._lock:
                if self._freeing > 1 or not self._untrimmed:
                    self._freeing -= 1
                    return
                self._untrimmed = False
            self._trim()

    @contextmanager
    def measure(self, kind: LoadKind) -> Iterator[LoadMemory]:
        """Measures the load that the `with` block runs. Measures nothing if the block raises."""
        own = self._needs.own_estimate(kind)
        load = LoadMemory(kind, Need(own, own))
        with self._lock:
            if not self._running:
                self._together, self._disturbed = [], False
                self._freed = self._freeing > 0
                self._modules = len(sys.modules)
                self._counts_peak = self._restart()
                self._before = self._resident()
                self._gpus_before = self._on_gpus()
                self._imports_before = self._imported()
            self._running += 1
            self._together.append(load)
        try:
            yield load
        except BaseException:
            with self._lock:
                self._disturbed = True
                self._together.remove(load)
                self._end()
            raise
        with self._lock:
            self._end()

    def _end(self) -> None:
        self._running -= 1
        if self._running:
            self._disturbed = True
            return
        if not self._together:
            return
        grown = max(self._resident() - self._before, 0)
        imports = self._imported() - self._imports_before
        if self._freed:
            pass  # each load shows its estimate
        elif imports or len(sys.modules) - self._modules >= _MODULES_OF_A_RUNTIME:
            self._learn_runtime(grown)
            self._share_out(max(grown - imports, 0))
        elif len(self._together) == 1 and not self._disturbed:
            self._measure_lone(self._together[0], grown)
        else:
            self._share_out(grown)
        for load in self._together:
            self._needs.imported(load.kind.backend)
            load.on_change()

    def _measure_lone(self, load: LoadMemory, grown: int) -> None:
        own = max(grown, load.kind.file_bytes)
        peak = self._peak() - self._before if self._counts_peak else own + load.kind.file_bytes
        gpus = {
            index: max(size - self._gpus_before.get(index, 0), 0) for index, size in self._on_gpus().items()
        }
        load.need = Need(own, max(peak, own), gpus=gpus, measured=True)
        load.shown = own

    def _on_gpus(self) -> Mapping[int, int]:
        """Returns the bytes that this process holds on each GPU with a budget."""
        return {index: by_pid.get(os.getpid(), 0) for index, by_pid in self._held.on_gpus().items()}

    def _share_out(self, grown: int) -> None:
        total = sum(load.need.own for load in self._together)
        for load in self._together:
            load.shown = grown * load.need.own // total if total else 0

    def _learn_runtime(self, grown: int) -> None:
        backends = {load.kind.backend for load in self._together}
        models = sum(load.need.own for load in self._together)
        if len(backends) == 1 and not self._disturbed:
            self._needs.imported(backends.pop(), max(grown - models, 0))


def _own(counts: PageCounts) -> int:
    """Returns this process's resident bytes, without the memory that it shares with workers."""
    return counts.anonymous + counts.files


def measure_workers(kind: LoadKind, pids: Collection[int], held: HeldMemory) -> LoadMemory:
    """Measures a loaded model in these worker processes and in the processes that they started.

    Walks all pages of the processes: call it on a thread.
    """
    prints = held.of_workers(pids).values()
    files = union_of_files(each.files for each in prints)
    own = sum(each.own for each in prints)
    peak = sum(peak_bytes(pid) - count_pages(pid).files for pid in pids)
    on_gpus = {index: sum(by_pid.get(pid, 0) for pid in pids) for index, by_pid in held.on_gpus(pids).items()}
    load = LoadMemory(kind, Need(own, max(own, peak), files, on_gpus, measured=bool(prints)))
    load.shown = _proportional_bytes(pids)
    return load


def _proportional_bytes(leaders: Collection[int]) -> int:
    """Returns the sum of the proportional set sizes of all processes in the sessions of these leaders."""
    members = [pid for session in sessions(leaders).values() for pid in session]
    return sum(map(proportional_bytes, members))
