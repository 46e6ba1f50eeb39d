"""What is told of the process and the machine: by the exposition library, and as Triton does."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily


class ProcessMetrics:
    """Memory, processor time and open files of the process, Python's version, and the load of the machine."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Machine())

    def text(self) -> bytes:
        """The text in Prometheus' format. Reads files; called on one thread at a time."""
        return generate_latest(self._registry)


class _Machine:
    """The processors and the memory of the machine, under Triton's names."""

    def __init__(self) -> None:
        psutil.cpu_percent()  # from here on the first page measures

    def collect(self) -> Iterator[GaugeMetricFamily]:
        memory = psutil.virtual_memory()
        yield GaugeMetricFamily(
            "nv_cpu_utilization",
            "Share of the machine's processor time that was used since the last page",
            psutil.cpu_percent() / 100,
        )
        yield GaugeMetricFamily("nv_cpu_memory_total_bytes", "Memory of the machine", memory.total)
        yield GaugeMetricFamily(
            "nv_cpu_memory_used_bytes",
            "Memory of the machine that is in use",
            memory.total - memory.available,
        )
