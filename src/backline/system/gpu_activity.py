"""Reads how busy NVIDIA GPUs are, from the driver's management library (NVML)."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from backline.system.gpu_memory import MANAGEMENT, MemoryInfo, check

_NAME_SIZE = 96


class _Utilization(ctypes.Structure):
    """Mirrors nvmlUtilization_t (nvml.h): the percentages of time in which the GPU and its memory were
    busy.
    """

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The use of one GPU by all processes. Memory is in bytes; `busy` is the fraction of the last second,
    from 0 to 1, in which the GPU was busy.
    """

    index: int
    name: str
    used: int
    total: int
    busy: float


class GpuActivity:
    """Reads all GPUs that this process can see. Call it on a thread, because the driver may block."""

    def __init__(self) -> None:
        """Raises OSError if the management library cannot be used. Most machines do not have this library."""
        self._nvml = ctypes.CDLL(MANAGEMENT)
        check("nvmlInit", self._nvml.nvmlInit_v2())
        count = ctypes.c_uint()
        check("nvmlDeviceGetCount", self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        self._gpus = [self._open(index) for index in range(count.value)]

    def _open(self, index: int) -> tuple[ctypes.c_void_p, str]:
        handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_SIZE)
        check(
            "nvmlDeviceGetHandleByIndex",
            self._nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)),
        )
        check("nvmlDeviceGetName", self._nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_SIZE)))
        return handle, name.value.decode(errors="replace")

    def __call__(self) -> Sequence[GpuReading]:
        """Returns a reading for each GPU, in order of their indexes. Raises OSError if the driver no longer
        works.
        """
        return [self._read(index, handle, name) for index, (handle, name) in enumerate(self._gpus)]

    def _read(self, index: int, handle: ctypes.c_void_p, name: str) -> GpuReading:
        memory, busy = MemoryInfo(), _Utilization()
        check("nvmlDeviceGetMemoryInfo", self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)))
        # The slices of a partitioned GPU (MIG) report no utilisation, but they do report their memory.
        self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(busy))
        return GpuReading(index, name, int(memory.used), int(memory.total), busy.gpu / 100)
