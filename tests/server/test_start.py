"""The cost of startup: parts that no model of the repository needs are not even imported, all threads
allocate from one heap, and threads rarely take the interpreter lock from each other.
"""

from __future__ import annotations

import asyncio
import platform
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.server import SWITCH_INTERVAL, switching_often_after
from support import models
from support.server import serve

#: Packages and modules, with everything in them, and what needs them.
NOT_NEEDED = {
    "backline.workers.process": "models in worker processes",
    "backline.workers.child": "the code inside worker processes",
    "backline.environments": "environments of Python models",
    "backline.lifecycle.loading.worker_pools": "models in worker processes",
    "backline.lifecycle.composed": "ensembles",
    "backline.schedule.ensembles.run": "ensembles",
    "backline.schedule.sequences.batcher": "sequences",
    "backline.schedule.objective.scheduler": "latency objectives",
    "backline.schedule.cache.queue": "response caches",
    "backline.schedule.cache.config": "response caches",
    "backline.schedule.rate_limit.permits": "rate limits",
    "backline.schedule.rate_limit.limits": "rate limits",
    "backline.observe.tracing.spans": "traces",
    "backline.observe.tracing.trace_file": "traces",
    "backline.repository.remote": "repositories elsewhere",
    "backline.repository.configuration.toml": "model.toml",
    "backline.repository.configuration.reader": "models with a configuration file",
    "backline.repository.configuration.override": "load requests with a configuration",
    "backline.dialects.open_inference.configuration": "clients that ask for configurations",
    "backline_client.client": "clients",
    "backline.plugins.runtimes.torchserve.compat": "models written for other servers",
    "backline.plugins.dialects.console": "the console",
    "backline.plugins.dialects.openapi": "documents of OpenAPI",
    "backline.plugins.dialects.openai": "clients of OpenAI",
    "backline.plugins.dialects.sagemaker": "SageMaker",
    "backline.plugins.dialects.plain": "plain HTTP",
    "backline.dialects.open_inference.grpc.service": "gRPC",
    "backline.wire.http2.connection": "HTTP/2",
    "backline.access.auth_file": "files of keys, and keys in the environment",
    "tomllib": "files of keys, and model.toml",
    "secrets": "new keys",
    "tempfile": "changes to files of keys",
    "platformdirs": "systems other than Linux",
    "shutil": "tables on terminals",
    "google.protobuf": "gRPC and config.pbtxt",
    "hpack": "HTTP/2",
    "rich": "tables and bars on terminals",
    "psutil": "systems without /proc",
    "email": "nobody",
    "tarfile": "archives",
    "zipfile": "archives",
    "importlib.metadata": "debugged models",
    "unittest": "nobody",
}
#: The most modules of Backline that a server with one ONNX model imports. Each costs about 0.3 ms of the
#: start and 25 KB of memory: before you raise the number, find out whether a module can be imported late.
MOST_MODULES = 262


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The modules that `backline serve` has imported once it has answered a request to an ONNX model."""
    folder = tmp_path_factory.mktemp("start")
    models.add1(folder / "repository")
    with serve(folder / "repository", folder / "log", environment={"PYTHONPROFILEIMPORTTIME": "1"}) as server:
        client = backline.connect(server.url)
        client["add1"](INPUT0=np.zeros((1, 16), np.float32))
        server.stop()
    return set(re.findall(r"^import time:.*\| +(\S+)$", server.output, re.MULTILINE))


def test_serving_an_onnx_model_imports_its_runtime(imported: set[str]) -> None:
    assert {"backline.server", "onnxruntime.capi"} <= imported


@pytest.mark.parametrize("module", NOT_NEEDED)
def test_serving_an_onnx_model_does_not_import(module: str, imported: set[str]) -> None:
    too_much = sorted(name for name in imported if name == module or name.startswith(f"{module}."))

    assert not too_much, f"only for {NOT_NEEDED[module]}"


def test_serving_an_onnx_model_imports_few_modules(imported: set[str]) -> None:
    own = sorted(name for name in imported if name.partition(".")[0] == "backline")

    assert len(own) <= MOST_MODULES, own


needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
#: The size of a heap of an arena that belongs to threads, in bytes. Its address is a multiple of its size.
THREAD_HEAP = 64 << 20


@pytest.fixture(scope="module")
def mappings(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The mappings of memory of a server with one ONNX model (proc_pid_smaps(5))."""
    folder = tmp_path_factory.mktemp("mappings")
    models.add1(folder / "repository")
    with serve(folder / "repository", folder / "log") as server:
        return Path(f"/proc/{server.process.pid}/smaps").read_text()


@needs_glibc
def test_all_threads_of_a_server_allocate_from_one_heap(mappings: str) -> None:
    places = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ 0 *$", mappings, re.MULTILINE)
    used = {int(end, 16): int(start, 16) for start, end, access in places if access == "rw-p"}
    unused = [(int(start, 16), int(end, 16)) for start, end, access in places if access == "---p"]

    assert not [
        start
        for start, end in unused
        if end % THREAD_HEAP == 0
        and used.get(start, 1) % THREAD_HEAP == 0
        and end - used[start] == THREAD_HEAP
    ]


@pytest.mark.parametrize("limit", [60.0, 0.0], ids=["a quick start", "a slow start"])
def test_threads_take_turns_more_often_once_the_models_are_loaded_or_the_time_is_over(limit: float) -> None:
    before = sys.getswitchinterval()

    async def start() -> bool:
        with switching_often_after(limit):
            rarely = sys.getswitchinterval() == before
            await asyncio.sleep(0.001)  # lets the event loop run timers that are due
            slow = sys.getswitchinterval() != before
        return rarely and slow == (limit == 0)

    try:
        assert asyncio.run(start())
        assert sys.getswitchinterval() == pytest.approx(SWITCH_INTERVAL)
    finally:
        sys.setswitchinterval(before)
