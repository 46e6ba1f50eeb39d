"""The audit log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from backline.engine.control import Change
from backline.lifecycle.records import AuditLog


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
