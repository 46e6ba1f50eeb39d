"""Measures how much memory the server and its workers hold at the moment."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backline.system.process_memory import Footprint, Footprints

if TYPE_CHECKING:
    from backline.lifecycle.memory.gpu_budgets import GpuBudgets


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of the server's process and of its workers at one moment, in bytes.

    `server` counts only memory that no worker shares. A worker that has ended is not listed.
    """

    server: int
    server_files: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[int, Footprint] = field(default_factory=dict)
    gpus: Mapping[int, Mapping[int, int]] = field(default_factory=dict)


class HeldMemory:
    """Reads how much the server and its workers hold. For use on threads: a read takes milliseconds."""

    def __init__(self, gpus: GpuBudgets | None = None) -> None:
        self._footprints = Footprints()
        self._gpus = gpus
        self._lock = threading.Lock()

    def __call__(self, pids: Collection[int]) -> Held:
        """Reads the memory of this process and of the workers with these ids."""
        workers = self.of_workers(pids)
        with self._lock:
            self._footprints.forget_others(pids)
            server = self._footprints.read_one()
        # The server also maps the blocks through which workers receive tensors; they count as workers'
        # memory.
        shared = min(server.shared, sum(one.shared for one in workers.values()))
        return Held(server.own - shared, server.files, workers, self.on_gpus(pids))

    def of_workers(self, pids: Collection[int]) -> Mapping[int, Footprint]:
        """Returns the footprints of these workers, each with the processes that it started."""
        with self._lock:
            return self._footprints.read(pids)

    def on_gpus(self, pids: Collection[int] = ()) -> Mapping[int, Mapping[int, int]]:
        """Returns the bytes that this process and these workers hold on GPUs with a budget, by process."""
        return {} if self._gpus is None else self._gpus.read(pids)
