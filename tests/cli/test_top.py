"""`backline top` shows what models do, and `backline completion` prints a script that shells accept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from math import inf
from pathlib import Path
from typing import Any

import pytest

from backline.plugins.tools.top.command import Reading, activities, percentile, with_metrics
from backline_client.client.records import ModelIndex
from cli.conftest import Run
from support.server import ServerProcess
from support.terminal import Terminal

KEY = ("a", "1")


def counters(success: int, *, fail: int = 0, runs: int = 0, ms: int = 0) -> dict[str, Any]:
    return {
        "execution_count": runs,
        "inference_count": success,
        "inference_stats": {
            "success": {"count": success, "ns": ms * 1_000_000},
            "fail": {"count": fail, "ns": 0},
            "queue": {"count": success, "ns": ms * 500_000},
        },
    }


def reading(moment: float, statistics: dict[str, Any]) -> Reading:
    return Reading(moment, (ModelIndex("a", "1", "READY"),), {KEY: statistics})


def test_rates_are_those_between_two_readings() -> None:
    before, after = (
        reading(10.0, counters(100, runs=50, ms=70)),
        reading(12.0, counters(300, fail=4, runs=100, ms=670)),
    )

    (one,) = activities(before, after)

    assert (one.requests_per_second, one.failures_per_second) == (100.0, 2.0)
    assert (one.mean_ms, one.queue_ms, one.batch) == (3.0, 1.5, 4.0)
    assert one.row()[6] == "-"


def test_a_model_that_was_loaded_again_counts_from_zero() -> None:
    (one,) = activities(reading(0.0, counters(100)), reading(1.0, counters(5, runs=5)))

    assert one.requests_per_second == 5.0


def test_the_busiest_model_comes_first() -> None:
    index = (ModelIndex("idle", "1", "READY"), ModelIndex("busy", "1", "READY"))
    before = Reading(0.0, index)
    after = Reading(1.0, index, {("busy", "1"): counters(3)})

    assert [one.model for one in activities(before, after)] == ["busy", "idle"]


def test_the_percentile_is_the_bound_of_its_bucket() -> None:
    before = {0.001: 5.0, 0.002: 5.0, inf: 5.0}
    after = {0.001: 103.0, 0.002: 105.0, inf: 105.0}

    assert percentile(before, after, 0.5) == 1.0
    assert percentile(before, after, 0.99) == 2.0
    assert percentile(after, after, 0.99) is None
    assert percentile({}, {0.001: 0.0, inf: 1.0}, 0.99) is None


def test_buckets_and_queues_are_read_from_the_metrics() -> None:
    page = (
        "# TYPE backline_request_duration_seconds histogram\n"
        'backline_request_duration_seconds_bucket{model="a",version="1",le="0.001"} 2\n'
        'backline_request_duration_seconds_bucket{model="a",version="1",le="+Inf"} 3\n'
        "# TYPE nv_inference_pending_request_count gauge\n"
        'nv_inference_pending_request_count{model="a",version="1"} 7\n'
    )

    found = with_metrics(reading(0.0, {}), page)

    assert found.latencies == {KEY: {0.001: 2.0, inf: 3.0}}
    assert found.waiting == {KEY: 7.0}


@pytest.mark.parametrize(("address", "known"), [("url", True), ("grpc_url", False)])
def test_the_models_of_a_server_are_listed(
    backline: Run, server: ServerProcess, address: str, known: bool
) -> None:
    done = backline("top", "--once", "--json", "--interval", 0.1, "--url", getattr(server, address))

    assert done.returncode == 0, done.stderr
    (one,) = (each for each in json.loads(done.stdout) if each["model"] == "add1")
    assert one["state"] == "READY"
    assert (one["waiting"] is not None) is known


def test_the_table_is_drawn_until_ctrl_c(server: ServerProcess) -> None:
    terminal = Terminal("top", "--interval", 0.1, "--url", server.url)
    terminal.read_until(r"requests/s  \(Ctrl-C stops\)")
    terminal.read_until("add1")
    terminal.type("\x03")

    assert terminal.process.wait(20) == 130


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_with_the_printed_script(backline: Run, tmp_path: Path) -> None:
    script = backline("completion", "bash")
    assert script.returncode == 0, script.stderr
    (tmp_path / "complete").write_text(script.stdout)
    typed = f"""
source {tmp_path}/complete
COMP_WORDS=(backline mode) COMP_CWORD=1
_backline_completion {Path(sys.executable).with_name("backline")}
echo "${{COMPREPLY[@]}}"
"""

    done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "models"


def test_an_unknown_shell_is_named(backline: Run) -> None:
    done = backline("completion", SHELL="/bin/tcsh")

    assert done.returncode == 1
    assert "no completion script for this user's shell, 'tcsh'; name one of bash, zsh, fish" in done.stderr
