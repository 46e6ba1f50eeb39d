"""Reports the server's activity to the console: counters of the process and of all models, read at most about
once a second however many clients follow them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from backline.engine.engine import Engine
from backline.engine.model import Model
from backline.engine.statistics import FAILURES, ModelStatistics
from backline.system.cores import cpu_seconds, usable_cores
from backline.system.memory import resident_bytes
from backline.system.nvml import GpuActivity, GpuReading
from backline_client.values.private_places import for_clients
from backline_client.values.tensor import in_pieces

#: Seconds between two readings.
INTERVAL = 1.0
_encode = msgspec.json.Encoder().encode


class Activity:
    """Reads the counters while at least one reader follows them. Runs on the event loop.

    The counters of each version are compared with the previous reading, and encoded again only if they
    differ. Ten readers cost as much as one, because all readers that last saw the same reading get the same
    bytes.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._number = 0
        self._read_at = 0.0
        #: For each model and version, its state in the last reading, its JSON for clients, and the number of
        #: the reading in which it last changed.
        self._known: dict[tuple[str, str], tuple[object, bytes, int]] = {}
        self._order: list[tuple[str, str]] = []
        self._frames: dict[int, bytes] = {}
        self._reading: asyncio.Lock = asyncio.Lock()
        self._cores = usable_cores()
        #: Reads the activity of the GPUs; None until the first reading, and on machines without GPUs.
        self._gpu_activity: GpuActivity | None = None
        self._gpus: Sequence[GpuReading] = ()

    async def frame(self, since: int) -> tuple[int, bytes]:
        """Returns the number of the current reading and, as JSON, everything that has changed since reading
        `since`.

        A client first passes 0, and then always the number that the previous call returned.
        """
        async with self._reading:
            if time.monotonic() - self._read_at >= INTERVAL * 0.9:
                await self._read()
        if since > self._number:
            since = 0
        frame = self._frames.get(since)
        if frame is None:
            frame = self._frames[since] = self._encode(since)
        return self._number, frame

    async def _read(self) -> None:
        first = not self._number
        self._number += 1
        self._read_at = time.monotonic()
        self._frames = {}
        models = list(self._engine.models())
        self._order = [(model.name, model.version) for model in models]
        present = set(self._order)
        self._known = {key: one for key, one in self._known.items() if key in present}
        await in_pieces(self._compare(models))
        if first or self._gpu_activity is not None:
            self._gpus = await asyncio.to_thread(self._read_gpus)

    def _read_gpus(self) -> Sequence[GpuReading]:
        try:
            if self._gpu_activity is None:
                self._gpu_activity = GpuActivity()
            return self._gpu_activity()
        except (OSError, AttributeError):  # no driver, a driver that lacks a function, or a lost GPU
            self._gpu_activity = None
            return ()

    def _compare(self, models: list[Model]) -> Iterator[None]:
        for model in models:
            key = (model.name, model.version)
            reading = self._brief(model)
            known = self._known.get(key)
            if known is None or known[0] != reading:
                self._known[key] = (reading, _encode(self._entry(model)), self._number)
            yield None

    def _brief(self, model: Model) -> object:
        """Returns the values that show whether the version's entry must be encoded again."""
        counters, progress = model.statistics, model.progress
        return (
            model.state,
            model.reason,
            model.unready,
            id(model),
            model.memory_bytes,
            model.serving.queue.pending,
            tuple(sorted(self._engine.labels(model.name).items())),
            counters.execution_count,
            counters.success.count,
            counters.success.ns,
            tuple(read(counters) for read in FAILURES.values()),
            None if progress is None else (progress.phase, progress.bytes_done, int(time.monotonic())),
        )

    def _entry(self, model: Model) -> dict[str, Any]:
        engine, counters, placement = self._engine, model.statistics, model.placement
        entry: dict[str, Any] = {
            "name": model.name,
            "version": model.version,
            "state": model.state.value,
            "reason": for_clients(model.reason or model.unready),
            "ready": model.ready,
            "default": model.answers and engine.find(model.name) is model,
            "labels": sorted(
                label for label, version in engine.labels(model.name).items() if version == model.version
            ),
            "backend": model.backend or ("ensemble" if model.config.ensemble else ""),
            "decoupled": model.decoupled,
            "memory": model.memory_bytes,
            "queued": model.serving.queue.pending,
            "max_batch_size": model.max_batch_size,
            **_counters(counters),
        }
        if placement is not None:
            entry |= {"lane": placement.lane, "instances": placement.instances}
        if model.progress is not None:
            progress = model.progress
            entry["progress"] = {
                "phase": progress.phase,
                "seconds": round(time.monotonic() - progress.began, 1),
                "bytes_done": progress.bytes_done,
                "bytes_total": progress.bytes_total,
            }
        return entry

    def _encode(self, since: int) -> bytes:
        control = self._engine.control
        workers = () if control is None else control.worker_pids()
        server = {
            "time": time.time(),
            "ready": self._engine.ready,
            "cpu_seconds": time.process_time(),
            "cores": self._cores,
            "memory": resident_bytes(),
            "workers": {
                "count": len(workers),
                "cpu_seconds": round(sum(map(cpu_seconds, workers)), 3),
                "memory": sum(map(resident_bytes, workers)),
            },
            "gpus": self._gpus,
        }
        changed = b",".join(
            known[1] for key in self._order if (known := self._known.get(key)) and known[2] > since
        )
        present = _encode(self._order)
        return b'{"reading":%d,"whole":%b,"server":%b,"present":%b,"models":[%b]}' % (
            self._number,
            b"false" if since else b"true",
            _encode(server),
            present,
            changed,
        )


def _counters(counters: ModelStatistics) -> dict[str, Any]:
    """Returns the counters since the load.

    Times are in nanoseconds; histograms are those of ModelStatistics.
    """
    return {
        "success": counters.success.count,
        "items": counters.inference_count,
        "runs": counters.execution_count,
        "failures": {reason: count for reason, read in FAILURES.items() if (count := read(counters))},
        "ns": {
            "total": counters.success.ns,
            "queue": counters.queue.ns,
            "input": counters.compute_input.ns,
            "infer": counters.compute_infer.ns,
            "output": counters.compute_output.ns,
        },
        "latency": _trimmed(counters.latency),
        "queueing": _trimmed(counters.queueing),
        "batches": {str(size): one.compute_infer.count for size, one in sorted(counters.batches.items())},
        "calls": {name: one.success.count for name, one in sorted(counters.calls.items())},
        "load_seconds": round(counters.load_seconds, 3),
    }


def _trimmed(counts: list[int]) -> list[int]:
    """Returns a histogram without the empty buckets at its end."""
    end = len(counts)
    while end and not counts[end - 1]:
        end -= 1
    return counts[:end]
