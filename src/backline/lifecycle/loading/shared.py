"""What all versions of a server have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from backline.engine.engine import Engine
from backline.lifecycle.calls.call_graph import CallGraph
from backline.lifecycle.loading.memory import LoadMeter
from backline.lifecycle.options import LifecycleOptions
from backline.schedule.queues.queue import QueueTotal
from backline.schedule.sequences.state_store import MemoryStateStore, StateStore
from backline.schedule.turn import Turn
from backline.system.cores import usable_cores
from backline.workers.here.core_budget import CoreBudget

if TYPE_CHECKING:
    from backline.schedule.cache.cache import ResponseCache
    from backline.schedule.rate_limit.permits import Permits


class Shared:
    """What the versions of one server share. Lives on the engine's event loop, but for what says otherwise."""

    def __init__(self, engine: Engine, options: LifecycleOptions, state_folder: Path) -> None:
        """Raises InvalidArgument for an option that cannot be used, or that needs what is not installed."""
        self.engine = engine
        self.options = options
        self.state_folder = state_folder
        self.total = QueueTotal(options.max_queued_requests)
        self.turn = Turn()
        self.cores = _core_budget(options.compute_threads)
        self.permits = None if options.rate_limit is None else _permits(options.rate_limit)
        self.cache = None if options.response_cache is None else _open_cache(options)
        #: Outlives the loads of versions, so that sequences go on with the next one.
        self.states: StateStore = MemoryStateStore() if options.state_store is None else options.state_store
        self.call_graph = CallGraph()
        #: For load threads, too.
        self.meter = LoadMeter()
        #: Whether what the start was to load is loaded, or has failed.
        self.started = False


def _core_budget(threads: int | None) -> CoreBudget | None:
    count = usable_cores() if threads is None else threads
    return CoreBudget(count) if count else None


# Few servers limit rates or keep answers: the others do not import what does.


def _permits(resources: tuple[str, ...]) -> Permits:
    from backline.schedule.rate_limit.limits import RateLimits, parse_resources
    from backline.schedule.rate_limit.permits import Permits

    return Permits(RateLimits(parse_resources(resources)))


def _open_cache(options: LifecycleOptions) -> ResponseCache | None:
    from backline.schedule.cache.config import open_cache

    return None if options.response_cache is None else open_cache(options.response_cache)
