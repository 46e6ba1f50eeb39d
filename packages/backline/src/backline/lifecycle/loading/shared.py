"""The objects that all versions in a server share, such as the core budget, the response cache and the states
of sequences.
"""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from backline.engine.engine import Engine
from backline.lifecycle.call_graph import CallGraph
from backline.lifecycle.memory.meter import HeldMemory, LoadMeter
from backline.lifecycle.memory.needs import NEEDS_FILE, Needs
from backline.lifecycle.options import LifecycleOptions, check_isolation
from backline.schedule.queues.queue import QueueTotal
from backline.schedule.sequences.state_store import MemoryStateStore, StateStore
from backline.schedule.turn import Turn
from backline.system.cores import usable_cores
from backline.workers.here.execution import CoreBudget
from backline_client.system.busy_poll import BusyPoll

if TYPE_CHECKING:
    from backline.lifecycle.loading.isolation.trial_processes import TrialProcesses
    from backline.lifecycle.memory.gpu_budgets import GpuBudgets
    from backline.schedule.cache.cache import ResponseCache
    from backline.schedule.cache.config import CacheOptions
    from backline.schedule.rate_limit.permits import Permits
    from backline.workers.process.pool import WorkerPool


class Shared:
    """The objects that all versions in a server share. Unless noted, use them only on the event loop."""

    def __init__(self, engine: Engine, options: LifecycleOptions, state_folder: Path) -> None:
        """Raises InvalidArgument for an unusable option, or an option whose package is not installed."""
        check_isolation(options.isolate)
        self.engine = engine
        self.options = options
        self.state_folder = state_folder
        self.total = QueueTotal(options.max_queued_requests)
        self.turn = Turn()
        #: The busy poll of the event loop. Polling is off unless the owner of the loop allows it.
        self.poll = BusyPoll()
        self.cores = _core_budget(options.compute_threads)
        self.permits = None if options.rate_limit is None else _permits(options.rate_limit)
        self.cache = None if options.response_cache is None else _open_cache(options.response_cache, engine)
        #: The states of sequences, kept here so that sequences continue when their version is reloaded.
        self.states: StateStore = MemoryStateStore() if options.state_store is None else options.state_store
        #: The open sequences that other servers run, by model and version. They also continue when their
        #: version is reloaded. Load threads use this object too.
        self.remote_sequences: WeakValueDictionary[tuple[str, str], Any] = WeakValueDictionary()
        self.call_graph = CallGraph()
        #: The measured or estimated memory that loads need. Load threads use this object too. If there is a
        #: memory budget, measurements are kept across restarts.
        self.needs = Needs(state_folder / NEEDS_FILE if options.limits_memory else None)
        self.gpu_budgets = _gpu_budgets(options)
        self.held = HeldMemory(self.gpu_budgets, self._trial_pids)
        self.meter = LoadMeter(self.needs, self.held)
        #: The worker pools that have running processes.
        self.pools: WeakSet[WorkerPool] = WeakSet()
        #: Whether all initial loads have ended.
        self.started = False
        self._trials: TrialProcesses | None = None
        self._trials_lock = Lock()

    def trials(self) -> TrialProcesses:
        """Returns the processes in which model files are tried. May be called on any thread."""
        from backline.lifecycle.loading.isolation.trial_processes import TrialProcesses

        with self._trials_lock:
            if self._trials is None:
                self._trials = TrialProcesses()
            return self._trials

    def _trial_pids(self) -> list[int]:
        return [] if self._trials is None else self._trials.pids

    def needs_fork_server(self, *, tried: bool) -> bool:
        """Returns whether a load probably has to start the fork server; `tried` says whether the files have
        passed a trial.
        """
        isolate = self.options.isolate
        return (isolate == "always" or (isolate != "never" and not tried)) and not self._trial_pids()

    def end_idle_fork_server(self) -> None:
        """Ends the fork server, which tries files, unless a trial runs. Its memory is then free. Blocks."""
        if self._trials is not None:
            self._trials.end_if_idle()

    def close(self) -> None:
        """Releases the shared objects. Call it once no version uses them."""
        with self._trials_lock:
            if self._trials is not None:
                self._trials.close()

    def worker_pids(self) -> list[int]:
        """Returns the ids of all worker processes that have not ended."""
        return [pid for pool in self.pools if not pool.debugged for pid in pool.pids]


def _core_budget(threads: int | None) -> CoreBudget | None:
    count = usable_cores() if threads is None else threads
    return CoreBudget(count) if count else None


# The functions below import modules that few servers need.


def _gpu_budgets(options: LifecycleOptions) -> GpuBudgets | None:
    if not options.gpu_memory_budget:
        return None
    from backline.lifecycle.memory.gpu_budgets import GpuBudgets

    return GpuBudgets(options.gpu_memory_budget)


def _permits(resources: tuple[str, ...]) -> Permits:
    from backline.schedule.rate_limit.limits import RateLimits, parse_resources
    from backline.schedule.rate_limit.permits import Permits

    return Permits(RateLimits(parse_resources(resources)))


def _open_cache(options: CacheOptions, engine: Engine) -> ResponseCache:
    from backline.schedule.cache.cache import LocalCache
    from backline.schedule.cache.config import open_cache

    cache = open_cache(options)
    if isinstance(cache, LocalCache):
        engine.response_cache = cache
    return cache
