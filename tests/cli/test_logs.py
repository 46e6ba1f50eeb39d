"""`backline logs` shows the log file of a server."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from backline.cli.logs import LogEntry, entries
from backline.observe.log.server_log import formatter
from cli.conftest import Run
from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.terminal import Terminal

LOG = """\
2026-11-25 04:22:42,152 DEBUG backline.requests: HTTP add1 version 1: 200 in 412 us
2026-11-25 04:22:43,000 ERROR backline.dialects: an HTTP request failed
Traceback (most recent call last):
  ValueError: no
2026-11-25T04:22:44.000Z WARNING backline.lifecycle: model 'add10' is slow
{"time": "2026-11-25T04:22:45.000Z", "level": "info", "logger": "backline", "message": "loaded add1"}
"""


def test_entries_keep_their_tracebacks_together() -> None:
    found = list(entries(LOG.splitlines(keepends=True)))

    assert [entry.level for entry in found] == ["debug", "error", "warning", "info"]
    assert found[1].text.endswith("ValueError: no\n")
    assert "".join(entry.text for entry in found) == LOG


@pytest.mark.parametrize("style", ["backline", "triton"])
@pytest.mark.parametrize("form", ["default", "ISO8601", "json"])
def test_entries_are_told_apart_in_every_format(form: Any, style: Any) -> None:
    records = [
        logging.LogRecord("backline", level, "journal.py", 99, "of add1", None, None)
        for level in (logging.INFO, logging.ERROR, logging.WARNING)
    ]
    records[0].__dict__["table"] = "+-----+\n| add1 |\n+-----+"
    try:
        raise ValueError("no")
    except ValueError as error:
        records[1].exc_info = (ValueError, error, error.__traceback__)
    lines = [f"{formatter(form, style).format(record)}\n" for record in records]

    found = list(entries("".join(lines).splitlines(keepends=True)))

    assert [entry.text for entry in found] == lines
    assert [entry.level for entry in found] == ["info", "error", "warning"]


def test_an_entry_is_complete_when_the_log_rests() -> None:
    assert [entry.text for entry in entries(["2026-01-01 1 INFO a: x\n", "", "more\n"])] == [
        "2026-01-01 1 INFO a: x\n",
        "more\n",
    ]


@pytest.mark.parametrize(
    ("level", "model", "expected"),
    [
        ("warning", "", True),
        ("error", "", False),
        ("", "add10", True),
        ("", "add1", False),
        ("", "slow.", False),
        ("", "model", True),
    ],
)
def test_entries_are_filtered_by_severity_and_whole_names(level: str, model: str, expected: bool) -> None:
    entry = LogEntry("warning", "2026-11-25 WARNING backline: model 'add10' is slow\n")

    assert entry.concerns(level, model) is expected


def test_the_log_of_a_running_server_is_followed_even_when_its_file_is_replaced(
    backline: Run, tmp_path: Path
) -> None:
    models.add1(tmp_path / "models")
    put(tmp_path / "models" / "broken" / "1" / "model.onnx", "no model")
    file = tmp_path / "server.log"
    arguments = ("--log-file", str(file), "--log-verbose", "1")

    with serve(tmp_path / "models", tmp_path / "out", *arguments, ready=False) as server:
        server.wait_started()
        errors = backline("logs", "--url", server.url, "--level", "error")
        assert "'broken' version 1" in errors.stdout
        following = Terminal("logs", "--follow", "--model", "add1", "--lines", 0, "--url", server.url)
        _request_until(backline, server, following)
        file.rename(tmp_path / "old.log")
        _request_until(backline, server, following)
        following.type("\x03")
        assert following.process.wait(20) == 130


def _request_until(backline: Run, server: ServerProcess, following: Terminal) -> None:
    """Sends requests until one is shown: the command may still be starting."""
    for _ in range(20):
        backline("infer", "add1", "-u", server.url, "-i", "zeros")
        try:
            following.read_until(r"add1 version 1.*: 200", timeout=3)
        except AssertionError:
            continue
        return
    raise AssertionError("no request was shown")


def test_a_server_without_a_file_says_where_to_look(backline: Run, server: ServerProcess) -> None:
    done = backline("logs", "--url", server.url)

    assert done.returncode == 1
    assert "logs to stderr: read the server's output" in done.stderr
