"""The GPUs that NVIDIA's driver shows to this process, for runtimes that do not count them themselves."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

from backline.engine.device import Gpus

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@cache
def cuda_gpus() -> Gpus:
    """Asks the driver once (cuInit, cuDeviceGetCount), which respects CUDA_VISIBLE_DEVICES."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return Gpus(reason=f"this machine has no NVIDIA driver ({_DRIVER} is not there)")
    count = ctypes.c_int(0)
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code:
        return Gpus(reason=f"the NVIDIA driver cannot be used: {_error_name(driver, code)}{_visible()}")
    if not count.value:
        return Gpus(reason=f"the NVIDIA driver shows no GPU{_visible()}")
    return Gpus(tuple(range(count.value)))


def _error_name(driver: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    driver.cuGetErrorName(code, ctypes.byref(name))
    return name.value.decode() if name.value else f"CUDA error {code}"


def _visible() -> str:
    return f" (with {_VISIBLE}={os.environ[_VISIBLE]})" if _VISIBLE in os.environ else ""
