"""The audit log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from backline.engine.control import Attempt, Change
from backline.lifecycle.audit_log import AuditLog


def change(number: int, model: str = "m", **more: str) -> Change:
    label: Any = more
    return Change(float(number), "Ada", "label", model, str(number), "stable", str(number - 1), **label)


def test_the_last_changes_come_first(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "state")
    for number in range(1, 2000):
        audit.append(change(number, detail="x" * 100))
    assert AuditLog(tmp_path / "state").history(limit=3) == [
        change(number, detail="x" * 100) for number in (1999, 1998, 1997)
    ]
    assert len(audit.history(limit=10_000)) == 1999


def test_history_can_be_limited_to_one_model(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    for number in range(1, 10):
        audit.append(change(number, "even" if number % 2 == 0 else "odd"))
    assert [one.time for one in audit.history("even")] == [8, 6, 4, 2]


def test_a_large_log_keeps_the_newer_half(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=2000)
    for number in range(1, 201):
        audit.append(change(number))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000
    assert [one.time for one in audit.history(limit=20)] == list(range(200, 180, -1))


def test_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    audit.append(change(1))
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": 2.0, "who": "Ad')
    audit.append(change(3))
    assert [one.time for one in audit.history()] == [3, 1]


def test_an_unwritable_log_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    audit = AuditLog(tmp_path / "file" / "state")
    with caplog.at_level(logging.ERROR):
        audit.append(change(1))
        audit.append(change(2))
    assert len(caplog.records) == 1
    assert "--state-dir" in caplog.text
    assert audit.history() == []


def attempt(number: int, outcome: Any = "refused", **more: str) -> Attempt:
    return Attempt(float(number), outcome, "GET /v2", **more)  # type: ignore[arg-type]


def test_changes_attempts_and_refusals_are_merged_by_time(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    entries = [
        change(1),
        attempt(2),
        attempt(3, "done", identity="app"),
        change(4),
        attempt(5, address="::1"),
    ]
    for entry in entries:
        audit.append(entry)
    assert audit.entries() == entries[::-1]
    assert audit.entries(limit=2) == entries[:2:-1]
    assert audit.entries(after=3.0) == entries[:2:-1]
    assert audit.history() == [entries[3], entries[0]]


def test_refusals_push_no_change_out(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=2000)
    audit.append(change(1))
    for number in range(2, 200):
        audit.append(attempt(number))
    assert audit.history() == [change(1)]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6000


def test_texts_are_escaped(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    audit.append(change(1, detail="a\r\nb\x1b[31m\x9b31m\u2028\udcff"))
    audit.append(attempt(2, detail="\x00\x7f\u202e"))
    for file in tmp_path.iterdir():
        assert file.read_text().rstrip("\n").isprintable()
    assert [one.detail for one in audit.entries()] == [
        "\\x00\\x7f\\u202e",
        "a\\r\\nb\\x1b[31m\\x9b31m\\u2028\\udcff",
    ]


def test_long_texts_push_no_change_out(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=20_000)
    audit.append(change(1))
    for number in range(2, 12):
        audit.append(change(number, detail="x" * 100_000))
    assert [one.time for one in audit.history()] == list(range(11, 0, -1))
