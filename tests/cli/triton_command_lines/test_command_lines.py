"""`backline tritonserver` compared with Triton 2.51 on the same command lines (see record_triton.py)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from backline.cli.tritonserver import command, read_arguments
from backline.cli.tritonserver.options import OPTIONS
from cli.triton_command_lines.cases import ENDING, REFUSED, SERVING
from cli.triton_command_lines.places import Places
from support.server import free_ports

RECORDED = json.loads((Path(__file__).parent / "triton_2_51.json").read_text())
LINES: dict[str, dict[str, Any]] = RECORDED["lines"]
#: Where the text does not begin with Triton's, and the row of the table in docs/from-triton.md that says why.
OTHER_TEXTS = dict.fromkeys(("tls without certificate", "a metrics port in use"), "a refused start says why")
#: The command lines that a real server is started for; of the others, only the options are compared.
STARTED = ("only a repository", "a model that fails, without exit on error", "the same, with lax readiness")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with Places(tmp_path_factory.mktemp("places")) as places:
        yield places


def test_every_option_of_triton_is_in_the_table() -> None:
    assert set(RECORDED["options"]) - {"help"} <= {option.name for option in OPTIONS}


def test_every_option_of_triton_is_on_a_command_line_that_is_compared() -> None:
    given = {argument[2:].partition("=")[0] for arguments in SERVING.values() for argument in arguments} | {
        "allow-http",
        "http-port",
        "grpc-port",
        "metrics-port",
    }
    # The recorder itself gives the folders. TLS has tests in tests/server/test_tls_ports.py.
    pattern = r"-ssl|-cert|-server-key|(backend|cache)-dir"
    apart = {name for name in RECORDED["options"] if re.search(pattern, name)}

    assert set(RECORDED["options"]) - {"help"} - apart <= given


@pytest.mark.parametrize("name", REFUSED)
def test_what_triton_refuses_is_refused_with_its_status_and_text(
    name: str, places: Places, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded = LINES[name]
    with pytest.raises(click.ClickException) as refusal:
        command.main(places.fill(REFUSED[name]), standalone_mode=False)

    assert refusal.value.exit_code == recorded["exit"] == 1
    text = places.hide(refusal.value.format_message()).replace("backline tritonserver: ", "{program}: ")
    expected = recorded["text"].partition("/")[0]  # up to the folder of Triton's caches
    assert name in OTHER_TEXTS or text.startswith(expected), expected


@pytest.mark.parametrize("name", SERVING)
def test_what_triton_serves_with_is_accepted(name: str, places: Places) -> None:
    assert LINES[name]["exit"] == 0

    parsed, _ = read_arguments(places.fill(SERVING[name]))

    assert parsed.options.repositories


@dataclass
class Ended:
    """A server that has ended: its exit status, its health when it was up, and what it printed."""

    status: int
    health: int | None
    printed: str


def _run(arguments: list[str], log: Path) -> Ended:
    http, grpc, metrics = free_ports(3)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    given = [one for one in ports if not any(a.startswith(one.partition("=")[0]) for a in arguments)]
    start = [sys.executable, "-m", "backline", "tritonserver", *given, *arguments]
    health = None
    with log.open("wb") as output:
        process = subprocess.Popen(start, stdout=output, stderr=subprocess.STDOUT)
        end = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < end and "Ctrl-C stops" not in log.read_text():
            time.sleep(0.02)
        if process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready", timeout=5) as answer:
                    health = answer.status
            except urllib.error.HTTPError as error:
                health = error.code
            process.terminate()
        status = process.wait(60)
    return Ended(status, health, log.read_text())


@pytest.mark.parametrize("name", ENDING)
def test_a_start_that_fails_in_triton_fails_with_its_status_and_text(
    name: str, places: Places, tmp_path: Path
) -> None:
    ended = _run(places.fill(ENDING[name]), tmp_path / "log")

    assert (ended.status, ended.health) == (LINES[name]["exit"], None)
    text = LINES[name]["text"].rpartition('] "')[2].strip(' "')
    assert name in OTHER_TEXTS or text in places.hide(ended.printed)
    if "port" not in name:  # ports are opened before models are loaded here
        _has_lines(ended.printed, name)


@pytest.mark.parametrize("name", STARTED)
def test_a_server_has_the_health_the_exit_status_and_the_log_lines_of_triton(
    name: str, places: Places, tmp_path: Path
) -> None:
    ended = _run(places.fill(SERVING[name]), tmp_path / "log")

    assert (ended.status, ended.health) == (LINES[name]["exit"], LINES[name]["health"])
    _has_lines(ended.printed, name)


def _has_lines(printed: str, name: str) -> None:
    squeezed = printed.replace(" ", "")
    for line in LINES[name]["lines"]:
        assert (line in printed) or (line[0] == "|" and line in squeezed), line
