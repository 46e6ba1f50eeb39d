"""The memory of worker processes: shown, counted under the budget, and reserved for loads."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import networks
from support.server import ServerProcess, serve

MIB = 1 << 20
#: More than a server and a worker process without a model hold.
SERVER = 70 * MIB


def python_model(repository: Path, name: str, mib: int) -> None:
    """A model whose file does not show that it takes this much memory."""
    folder = repository / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(
        f"import numpy as np\n\nDATA = np.ones({mib} << 20, np.uint8)\n\n\n"
        "def total(x: int) -> int:\n    return int(DATA[0]) + x\n"
    )


def ask(server: ServerProcess, model: str) -> str:
    """The model's answer to 1, or the reason why there is none."""
    request = urllib.request.Request(
        f"{server.url}/v2/models/{model}/generate", b'{"x": 1}', {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return str(json.loads(answer.read())["output"])
    except urllib.error.HTTPError as error:
        return str(json.loads(error.read())["error"])


def listing(server: ServerProcess) -> dict[str, dict[str, Any]]:
    with urllib.request.urlopen(f"{server.url}/v2/models", timeout=30) as answer:
        return {entry["name"]: entry for entry in json.loads(answer.read())["versions"]}


def ready(server: ServerProcess) -> list[str]:
    return [name for name, entry in listing(server).items() if entry["state"] == "READY"]


def proportional(server: ServerProcess) -> int:
    """What the server and its workers hold."""
    root = psutil.Process(server.process.pid)
    total = 0
    for process in (root, *root.children(recursive=True)):
        with suppress(OSError, psutil.NoSuchProcess):
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def options(folder: Path, budget: int) -> tuple[str, ...]:
    return ("--state-dir", str(folder / "state"), "--memory-budget", str(budget))


def test_python_models_that_do_not_fit_together_take_turns(tmp_path: Path) -> None:
    for number in range(4):
        python_model(tmp_path / "models", f"model{number}", 100)
    budget = SERVER + 320 * MIB
    with serve(tmp_path / "models", tmp_path / "log", *options(tmp_path, budget)) as server:
        assert len(ready(server)) == 2
        for number in (0, 1, 2, 3, 0):
            assert ask(server, f"model{number}") == "2"
            assert 1 <= len(ready(server)) <= 2
            assert proportional(server) <= budget * 1.05
        reasons = [entry["reason"] for entry in listing(server).values()]
        assert any(text.startswith("unloaded to make room for model 'model0' version 1;") for text in reasons)


def test_needs_are_known_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        python_model(tmp_path / "models", f"model{number}", 100)
    budget = SERVER + 190 * MIB
    with serve(tmp_path / "models", tmp_path / "log", *options(tmp_path, budget)) as server:
        assert {ask(server, f"model{number}") for number in range(3)} == {"2"}
    with serve(tmp_path / "models", tmp_path / "log", *options(tmp_path, budget)) as server:
        asleep = [entry["reason"] for entry in listing(server).values() if entry["state"] != "READY"]
        assert len(asleep) == 2
        needs = json.loads((tmp_path / "state" / "memory.json").read_text())["models"].values()
        assert sorted(need["measured"] for need in needs) == [True, True, True]
        assert all(100 * MIB < need["own"] < 150 * MIB for need in needs)


def test_a_model_that_never_fits_is_refused_without_evictions_once_that_is_known(tmp_path: Path) -> None:
    python_model(tmp_path / "models", "huge", 400)
    python_model(tmp_path / "models", "small", 10)
    (tmp_path / "models" / "huge" / "model.toml").write_text('load = "on_demand"\n')
    with serve(tmp_path / "models", tmp_path / "log", *options(tmp_path, SERVER + 150 * MIB)) as server:
        assert "has no room for it" in ask(server, "huge")
        assert proportional(server) <= (SERVER + 150 * MIB) * 1.05
        assert ask(server, "small") == "2"
        assert "has no room for it" in ask(server, "huge")
        assert ready(server) == ["small"]


def test_the_memory_of_a_python_model_is_that_of_its_workers(tmp_path: Path) -> None:
    python_model(tmp_path / "models", "model", 60)
    (tmp_path / "models" / "model" / "model.toml").write_text("[[instance_group]]\ncount = 2\n")
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        assert 150 * MIB < listing(server)["model"]["memory_bytes"] < 240 * MIB


@pytest.mark.parametrize("count", [1, 4])
def test_models_that_are_loaded_together_show_what_the_process_grew_by(tmp_path: Path, count: int) -> None:
    side = 3000  # 36 MB, made while the model is loaded
    for number in range(count):
        networks.build(
            tmp_path / "models" / f"model{number}" / "1" / "model.onnx",
            [
                networks.node("Expand", ["one", "shape"], ["w"]),
                networks.node("MatMul", ["x", "w"], ["y"]),
            ],
            [("x", networks.FLOAT, ["N", side])],
            [("y", networks.FLOAT, ["N", side])],
            {"one": networks.floats(1), "shape": networks.ints(side, side)},
        )
    with serve(tmp_path / "models", tmp_path / "log", "--state-dir", str(tmp_path / "state")) as server:
        shown = [entry["memory_bytes"] for entry in listing(server).values()]
        assert all(one > 30 * MIB for one in shown), shown
