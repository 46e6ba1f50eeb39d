"""Models pinned to cores: their own threads, those of ONNX Runtime, and their worker processes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from backline.embedded.embedded import Embedded
from backline.system.cores import check_cores, format_cores
from backline_client.values.errors import InvalidArgument
from support import models
from support.embedded import start
from support.server import serve

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be pinned here")
CORE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
PYTHON = """
import os

from backline.model import INT64


class Model:
    def predict(self, x: INT64[1]) -> INT64[-1]:
        return sorted(os.sched_getaffinity(0))
"""


def put_add1(repository: Path, settings: str) -> None:
    models.add1(repository)
    (repository / "add1" / "model.toml").write_text(settings)


def run(folder: Path, look: Callable[[Embedded], None]) -> None:
    """Calls `look` once the models of a folder are loaded in this process, or have failed to load."""

    async def whole() -> None:
        program = await start(folder / "models")
        look(program)
        await program.stop()

    asyncio.run(whole())


def reason(folder: Path) -> str:
    """Why the folder's only model is not served."""
    reasons = []
    run(folder, lambda program: reasons.extend(model.reason for model in program.engine.models()))
    return reasons[0]


def pinned() -> Counter[frozenset[int]]:
    """The number of this process's threads by the set of cores they are pinned to."""
    return Counter(frozenset(os.sched_getaffinity(int(task))) for task in os.listdir("/proc/self/task"))


def test_threads_of_a_model_and_its_runtime_are_pinned_to_its_cores(tmp_path: Path) -> None:
    put_add1(
        tmp_path / "models",
        f"cpus = [{CORE}]\n[instance_group]\ncount = 2\n[parameters]\nintra_op_thread_count = 3\n",
    )
    before = pinned()

    def look(program: Embedded) -> None:
        own = [thread for thread in threading.enumerate() if thread.name.startswith("add1-")]
        assert [os.sched_getaffinity(thread.native_id or 0) for thread in own] == [{CORE}, {CORE}]
        if len(os.sched_getaffinity(0)) > 1:
            assert (
                pinned()[frozenset({CORE})] - before[frozenset({CORE})] == 2 + 2
            )  # two instance threads, and two of ONNX Runtime
        placement = program.engine.find("add1").placement
        assert placement is not None
        assert (placement.lane, placement.instances) == ("thread", 2)
        assert placement.reason.endswith(f"; pinned to core {CORE}")

    run(tmp_path, look)


def test_instances_of_all_groups_are_pinned(tmp_path: Path) -> None:
    put_add1(
        tmp_path / "models",
        f'cpus = "{CORE}"\n[[instance_group]]\ncount = 2\nkind = "CPU"\n'
        '[[instance_group]]\nname = "more"\ncount = 1\nkind = "CPU"\n',
    )

    def look(program: Embedded) -> None:
        own = [thread for thread in threading.enumerate() if thread.name.startswith("add1-")]
        assert [os.sched_getaffinity(thread.native_id or 0) for thread in own] == [{CORE}] * 3

    run(tmp_path, look)


def test_worker_processes_are_pinned_and_models_show_lists_their_cores(tmp_path: Path) -> None:
    (tmp_path / "models" / "where" / "1").mkdir(parents=True)
    (tmp_path / "models" / "where" / "1" / "model.py").write_text(PYTHON)
    (tmp_path / "models" / "where" / "model.toml").write_text(f'cpus = "{CORE}"\n')

    with serve(tmp_path / "models", tmp_path / "log") as server:
        command = [sys.executable, "-m", "backline", "models", "show", "where", "--url", server.url]
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        answer = urllib.request.urlopen(f"{server.url}/v2/models/where/generate", b'{"x": 1}').read()

    assert f"cores          {CORE}\n" in shown
    assert json.loads(answer)["output"] == CORE


def test_an_unavailable_core_is_an_error(tmp_path: Path) -> None:
    put_add1(tmp_path / "models", "cpus = [4000]\n")

    there = format_cores(os.sched_getaffinity(0))
    assert reason(tmp_path).startswith(
        f"model 'add1': cpus names 4000, but this process may only use the cores {there}: correct cpus"
    )


def test_the_inline_lane_cannot_be_pinned(tmp_path: Path) -> None:
    put_add1(tmp_path / "models", 'cpus = [0]\nlane = "inline"\n')

    assert "lane inline and cpus contradict each other: the event loop is not bound to cores" in reason(
        tmp_path
    )


def test_cpus_is_an_error_on_systems_that_cannot_pin_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")

    with pytest.raises(InvalidArgument, match="model 'm': cpus needs a system that can pin threads to cores"):
        check_cores("m", (0,))


@pytest.mark.parametrize(("cores", "text"), [({0}, "0"), ({3, 0, 1, 2, 6}, "0-3, 6"), ({1, 3}, "1, 3")])
def test_cores_are_printed_as_ranges(cores: set[int], text: str) -> None:
    assert format_cores(cores) == text
