"""Reads how busy NVIDIA GPUs are, and how much of their memory each process holds, from the driver's
management library (NVML).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

_DRIVER = "libcuda.so.1"
MANAGEMENT = "libnvidia-ml.so.1"
_INSUFFICIENT_SIZE = 7
#: The size in bytes of a buffer for a PCI bus id, such as "00000000:3B:00.0". Ids are always shorter.
_BUS_ID = 64


class _ProcessInfo(ctypes.Structure):
    """Mirrors nvmlProcessInfo_t (nvml.h)."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("bytes", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class MemoryInfo(ctypes.Structure):
    """Mirrors nvmlMemory_t (nvml.h)."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class GpuMemory:
    """Reads the memory of GPUs, identified by CUDA's numbers. Call it on a thread, because the driver may
    block.
    """

    def __init__(self, indexes: Collection[int]) -> None:
        """Raises OSError, with the reason, if the driver or its management library cannot be used."""
        self._nvml = ctypes.CDLL(MANAGEMENT)
        check("nvmlInit", self._nvml.nvmlInit_v2())
        # CUDA and NVML number GPUs differently, but both report the same PCI bus id for a GPU.
        self._handles = {index: self._handle(bus_id) for index, bus_id in _bus_ids(indexes).items()}

    def _handle(self, bus_id: bytes) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        check(
            "nvmlDeviceGetHandleByPciBusId",
            self._nvml.nvmlDeviceGetHandleByPciBusId_v2(bus_id, ctypes.byref(handle)),
        )
        return handle

    def __call__(self, pids: Collection[int]) -> Mapping[int, Mapping[int, int]]:
        """Returns, by GPU and then by process id, the bytes that this process and the processes `pids` hold
        on each GPU.

        In a container the driver may not know the ids of the processes in it. If the driver names none of the
        processes, all used memory of the GPU is attributed to this process.
        """
        own = os.getpid()
        found: dict[int, Mapping[int, int]] = {}
        for index, handle in self._handles.items():
            known = {pid: size for pid, size in self._processes(handle).items() if pid in {own, *pids}}
            found[index] = known or {own: self._used(handle)}
        return found

    def _processes(self, handle: ctypes.c_void_p) -> dict[int, int]:
        count = ctypes.c_uint(64)
        while True:
            infos = (_ProcessInfo * count.value)()
            code = self._nvml.nvmlDeviceGetComputeRunningProcesses_v3(handle, ctypes.byref(count), infos)
            if code == _INSUFFICIENT_SIZE:
                count.value += 16  # more processes may start before the next call
                continue
            check("nvmlDeviceGetComputeRunningProcesses", code)
            return {info.pid: info.bytes for info in infos[: count.value]}

    def _used(self, handle: ctypes.c_void_p) -> int:
        info = MemoryInfo()
        check("nvmlDeviceGetMemoryInfo", self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(info)))
        return int(info.used)


def _bus_ids(indexes: Collection[int]) -> dict[int, bytes]:
    driver = ctypes.CDLL(_DRIVER)
    check("cuInit", driver.cuInit(0))
    found: dict[int, bytes] = {}
    for index in indexes:
        device, text = ctypes.c_int(), ctypes.create_string_buffer(_BUS_ID)
        check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), index))
        check("cuDeviceGetPCIBusId", driver.cuDeviceGetPCIBusId(text, _BUS_ID, device))
        found[index] = text.value
    return found


def check(call: str, code: int) -> None:
    if code:
        raise OSError(f"{call} failed with code {code}")


_NAME_SIZE = 96


class _Utilization(ctypes.Structure):
    """Mirrors nvmlUtilization_t (nvml.h): the percentages of time in which the GPU and its memory were
    busy.
    """

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class GpuReading:
    """The use of one GPU by all processes. Memory is in bytes; `busy` is the fraction of the driver's last
    sample period (at most a second), from 0 to 1, in which the GPU was busy.
    """

    index: int
    name: str
    used: int
    total: int
    busy: float


class GpuActivity:
    """Reads how busy the GPUs that this process can see are, and how much of their memory is in use. Call it
    on a thread, because the driver may block.
    """

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
        """Returns a reading for each GPU, ordered by index. Raises OSError if the driver no longer works."""
        return [self._read(index, handle, name) for index, (handle, name) in enumerate(self._gpus)]

    def _read(self, index: int, handle: ctypes.c_void_p, name: str) -> GpuReading:
        memory, busy = MemoryInfo(), _Utilization()
        check("nvmlDeviceGetMemoryInfo", self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)))
        # The slices of a partitioned GPU (MIG) report no utilisation, but they do report their memory.
        self._nvml.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(busy))
        return GpuReading(index, name, int(memory.used), int(memory.total), busy.gpu / 100)
