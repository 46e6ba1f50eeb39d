"""Memory budgets of GPUs: the option, the reading of the driver, and the choice of what to evict."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Gpus
from backline.lifecycle.memory import gpu_budgets
from backline.lifecycle.memory.gpu_budgets import GpuBudgets, ReadGpus
from backline.lifecycle.memory.meter import HeldMemory, LoadMeter
from backline.lifecycle.memory.needs import LoadKind, Needs, load_kind
from backline_client.values.errors import InvalidArgument

GIB = 1 << 30
MIB = 1 << 20


class FakeGpus:
    """Two GPUs, and what each process holds on them."""

    def __init__(self) -> None:
        self.bytes: dict[int, dict[int, int]] = {0: {}, 1: {}}

    def reader(self, indexes: Collection[int]) -> ReadGpus:
        return lambda pids: {
            index: {pid: size for pid, size in self.bytes[index].items() if pid in {os.getpid(), *pids}}
            for index in indexes
        }


def budgets(*texts: str, fake: FakeGpus | None = None, gpus: Gpus | None = None) -> GpuBudgets:
    return GpuBudgets(texts, lambda: gpus or Gpus((0, 1)), (fake or FakeGpus()).reader)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (("20GiB",), {0: 20 * GIB, 1: 20 * GIB}),
        (("1:20GiB",), {1: 20 * GIB}),
        (("20GiB", "1: 8GiB"), {0: 20 * GIB, 1: 8 * GIB}),
    ],
)
def test_a_budget_is_for_every_gpu_or_for_one(texts: tuple[str, ...], expected: Mapping[int, int]) -> None:
    assert budgets(*texts).bytes == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [("2:1GiB", "GPU 2, which does not exist; the GPUs are 0, 1"), ("0:much", "'much' is not")],
)
def test_an_invalid_budget_is_refused(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        budgets(text)


def test_a_machine_without_gpus_gets_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert budgets("1GiB", gpus=Gpus(reason="this machine has no NVIDIA driver")).bytes == {}
    assert "--gpu-memory-budget has no effect: this machine has no NVIDIA driver" in caplog.text


def test_a_driver_that_does_not_tell_what_is_in_use_is_an_error() -> None:
    def broken(_: Collection[int]) -> ReadGpus:
        raise OSError("libnvidia-ml.so.1: cannot open shared object file")

    with pytest.raises(InvalidArgument, match="does not report how much memory is in use: libnvidia-ml"):
        GpuBudgets(("1GiB",), lambda: Gpus((0,)), broken)


def test_a_load_in_the_server_is_measured_on_each_gpu() -> None:
    fake = FakeGpus()
    held = HeldMemory(budgets("1GiB", fake=fake))
    fake.bytes[1] = {os.getpid(): 300 * MIB, 99: 5 * MIB}
    with LoadMeter(Needs(), held).measure(LoadKind("key", "pytorch", MIB)) as load:
        fake.bytes[1][os.getpid()] += 120 * MIB
    assert load.need.gpus == {0: 0, 1: 120 * MIB}


def test_a_model_is_expected_on_the_gpus_that_it_asks_for() -> None:
    def expected(*groups: InstanceGroup) -> tuple[int, ...]:
        config = ModelConfig("m", instance_groups=groups)
        return load_kind(config, "print", "m/1/model.onnx", {"m/1/model.onnx": 100}, (0, 1)).gpus

    assert expected() == (0, 1)
    assert expected(InstanceGroup(1, kind="gpu", gpus=(1,))) == (1,)
    assert expected(InstanceGroup(1, kind="cpu")) == ()


def test_a_version_on_the_gpu_is_evicted_for_another(
    home: Any, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("first", "second"):
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        (folder / "model.py").write_text("def total(x: int) -> int:\n    return x + 1\n")
        (repository / name / "model.toml").write_text('load = "on_demand"\n')

    def reader(_: Collection[int]) -> ReadGpus:
        return lambda pids: {0: dict.fromkeys(pids, 600 * MIB)}  # each worker holds this much

    monkeypatch.setattr(
        gpu_budgets, "GpuBudgets", lambda texts: GpuBudgets(texts, lambda: Gpus((0,)), reader)
    )

    async def scenario() -> None:
        async with home(repository, gpu_memory_budget=("1GiB",)) as server:
            for name, other in (("first", "second"), ("second", "first"), ("first", "second")):
                await server.engine.find(name).serving.wake()
                assert server.states(name) == {"1": "READY"}
                assert server.states(other) == {"1": "ON_DEMAND"}

    asyncio.run(scenario())


_DRIVER = """
#include <string.h>
int cuInit(unsigned int flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 5; return 0; }
int cuDeviceGetPCIBusId(char *id, int length, int device) {
    strncpy(id, device == 6 ? "0000:3B:00.0" : "0000:AA:00.0", length);
    return 0;
}
"""
_MANAGEMENT = """
#include <stdlib.h>
#include <string.h>
typedef struct { unsigned int pid; unsigned long long bytes; unsigned int gi; unsigned int ci; } Info;
typedef struct { unsigned long long total, free, used; } Memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **handle) {
    *handle = (void *)(size_t)(strcmp(id, "0000:3B:00.0") == 0 ? 1 : 2);
    return 0;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned int *count, Info *infos) {
    unsigned int size = *count;
    *count = 70;
    if (size < 70) return 7;
    for (int number = 0; number < 70; number++) infos[number] = (Info){number + 1, 1000 + number, 0, 0};
    if (handle == (void *)1) infos[3].pid = atoi(getenv("OWN_PID"));
    return 0;
}
int nvmlDeviceGetCount_v2(unsigned int *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    *handle = (void *)(size_t)(index + 1);
    return 0;
}
int nvmlDeviceGetName(void *handle, char *name, unsigned int length) {
    strncpy(name, "NVIDIA Stand-in", length);
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *handle, unsigned int *rates) {
    rates[0] = handle == (void *)1 ? 25 : 0;
    return handle == (void *)1 ? 0 : 3;
}
int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    *memory = (Memory){9000, 2000, 7000};
    return 0;
}
"""
_PROGRAM = """
import os
from backline.system.nvml import GpuMemory

os.environ["OWN_PID"] = str(os.getpid())
os.putenv("OWN_PID", str(os.getpid()))
found = GpuMemory([0, 1])([8])
print({index: {"own" if pid == os.getpid() else pid: size for pid, size in held.items()}
       for index, held in found.items()})
print(GpuMemory([0])([])[0] == {os.getpid(): 7000})
"""
_ACTIVITY = """
from backline.system.nvml import GpuActivity

for gpu in GpuActivity()():
    print(gpu.index, gpu.name, gpu.used, gpu.total, gpu.busy)
"""


def test_the_driver_is_asked_by_the_place_of_a_gpu_on_the_bus(tmp_path: Path) -> None:
    # GPU 1 is another one for NVML. Processes that are neither the server nor its workers do not count.
    assert _run_with_driver(tmp_path, _PROGRAM) == ["{0: {8: 1007}, 1: {'own': 1003, 8: 1007}}", "True"]


def test_the_driver_is_asked_how_busy_gpus_are(tmp_path: Path) -> None:
    assert _run_with_driver(tmp_path, _ACTIVITY) == [
        "0 NVIDIA Stand-in 7000 9000 0.25",
        "1 NVIDIA Stand-in 7000 9000 0.0",  # it does not support the question
    ]


def _run_with_driver(tmp_path: Path, program: str) -> list[str]:
    """The lines that a program prints in a process that finds a stand-in for the driver."""
    compiler = shutil.which("cc")
    if compiler is None or os.name != "posix":
        pytest.skip("compiling the stand-in driver needs cc, which is not installed")
    for name, source in (("libcuda.so.1", _DRIVER), ("libnvidia-ml.so.1", _MANAGEMENT)):
        (tmp_path / "driver.c").write_text(source)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(tmp_path / name), str(tmp_path / "driver.c")], check=True
        )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
