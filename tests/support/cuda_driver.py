"""A stand-in for the NVIDIA driver: a shared library that reports GPUs but cannot compute."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = """
int cuInit(unsigned int flags) { return CODE; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_NO_DEVICE"; return 0; }
"""


def show_gpus(folder: Path, count: int, code: int = 0) -> dict[str, str]:
    """Environment for a process that sees `count` GPUs, or whose driver fails to initialise with `code`.

    Code 100 is CUDA_ERROR_NO_DEVICE.
    """
    compiler = shutil.which("cc")
    if compiler is None or os.name != "posix":
        pytest.skip("compiling the stand-in driver needs cc, which is not installed")
    source = folder / "driver.c"
    source.write_text(_SOURCE)
    library = folder / "libcuda.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", f"-DCOUNT={count}", f"-DCODE={code}", "-o", library, source],
        check=True,
    )
    return {
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("LD_LIBRARY_PATH"))))
    }
