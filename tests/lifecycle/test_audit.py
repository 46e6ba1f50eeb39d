"""The audit log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.lifecycle import audit_log
from backline.lifecycle.audit_log import AuditLog
from backline.lifecycle.audit_thread import AuditThread
from backline_client.system.file_lock import edited
from backline_client.values.control import Attempt, Change
from backline_client.values.errors import InvalidArgument


def change(number: int, model: str = "m", **more: str) -> Change:
    label: Any = more
    return Change(float(number), "Ada", "label", model, str(number), "stable", str(number - 1), **label)


def test_the_last_changes_come_first(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path / "state")
    for number in range(1, 2000):
        audit.append(change(number, detail="x" * 100))
    assert AuditLog(tmp_path / "state").history(limit=3).entries == [
        change(number, detail="x" * 100) for number in (1999, 1998, 1997)
    ]
    assert len(audit.history(limit=500).entries) == 500


def test_history_can_be_limited_to_one_model(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    for number in range(1, 10):
        audit.append(change(number, "even" if number % 2 == 0 else "odd"))
    assert [one.time for one in audit.history("even").entries] == [8, 6, 4, 2]


def test_a_large_log_keeps_the_newer_half(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=2000)
    for number in range(1, 201):
        audit.append(change(number))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5000
    assert [one.time for one in audit.history(limit=15).entries] == list(range(200, 185, -1))


def test_a_truncated_line_is_skipped(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    audit.append(change(1))
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"time": 2.0, "who": "Ad')
    audit.append(change(3))
    assert [one.time for one in audit.history().entries] == [3, 1]


def test_an_unwritable_log_is_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    audit = AuditLog(tmp_path / "file" / "state")
    with caplog.at_level(logging.ERROR):
        audit.append(change(1))
        audit.append(change(2))
    assert len(caplog.records) == 1
    assert "--state-dir" in caplog.text
    assert audit.history().entries == []


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
    assert audit.entries().entries == entries[::-1]
    assert audit.entries(limit=2).entries == entries[:2:-1]
    assert audit.entries(after=3.0).entries == entries[:2:-1]
    assert audit.history().entries == [entries[3], entries[0]]


def test_refusals_push_no_change_out(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=2000)
    audit.append(change(1))
    for number in range(2, 200):
        audit.append(attempt(number))
    assert audit.history().entries == [change(1)]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 6000


def test_texts_are_escaped(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    audit.append(change(1, detail="a\r\nb\x1b[31m\x9b31m\u2028\udcff"))
    audit.append(attempt(2, detail="\x00\x7f\u202e"))
    for file in tmp_path.iterdir():
        assert file.read_text().rstrip("\n").isprintable()
    assert [one.detail for one in audit.entries().entries] == [
        "\\x00\\x7f\\u202e",
        "a\\r\\nb\\x1b[31m\\x9b31m\\u2028\\udcff",
    ]


def test_long_texts_push_no_change_out(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=20_000)
    audit.append(change(1))
    for number in range(2, 12):
        audit.append(change(number, detail="x" * 100_000))
    assert [one.time for one in audit.history().entries] == list(range(11, 0, -1))


def failure(number: int, identity: str, route: str = "POST /v2/models/m/promote") -> Attempt:
    return Attempt(float(number), "failed", route, identity, "10.0.0.7", "m", "no such version")


def test_a_flood_of_failures_pushes_out_only_its_own_entries(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=20_000)
    audit.append(change(1, detail="by another caller"))
    audit.append(failure(2, "another"))
    audit.append(Attempt(3.0, "done", "POST /v2/logging", "flooding", "10.0.0.7"))
    for number in range(4, 1000):
        audit.append(failure(number, "flooding", f"PUT /v2/models/m/labels/{number}"))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 45_000
    lines = [line for name in ("audit.jsonl.1", "audit.jsonl") for line in (tmp_path / name).open()]
    assert "by another caller" in lines[0]
    assert '"another"' in lines[1]
    assert '"done"' in lines[2]
    assert '"time": 999.0' in lines[-1]
    assert len(lines) > 120


def test_a_flood_of_changes_under_false_names_pushes_out_only_its_own_entries(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=20_000)
    audit.append(Change(1.0, "Ada (deploy, 10.0.0.8)", "load", "m"))
    for number in range(2, 1000):
        user = f"user{number} (deploy, 10.0.0.8)"  # the client says so
        audit.append(Change(float(number), f"{user} (flooding, 10.0.0.7)", "promote", "m", "1", "stable"))
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 45_000
    assert "Ada" in (tmp_path / "audit.jsonl.1").read_text().splitlines()[0]


def test_the_subject_of_a_token_cannot_pass_for_another_caller(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path, limit=20_000)
    audit.append(Change(1.0, "Ada (root, 10.0.0.8)", "load", "m"))
    audit.append(Change(2.0, "root, 10.0.0.8", "load", "m"))
    for number in range(3, 1000):
        who = ("x (y (root, 10.0.0.8), 10.0.0.7)", "y (root, 10.0.0.8), 10.0.0.7")[number % 2]
        audit.append(Change(float(number), who, "promote", "m", "1", "stable"))
    lines = (tmp_path / "audit.jsonl.1").read_text().splitlines()
    assert [json.loads(line)["time"] for line in lines[:2]] == [1.0, 2.0]


def test_a_server_that_was_killed_during_a_rotation_loses_nothing(tmp_path: Path) -> None:
    first = AuditLog(tmp_path)
    for number in range(1, 20):
        first.append(change(number))
    lines = (tmp_path / "audit.jsonl").read_bytes()
    (tmp_path / "audit.jsonl.1").write_bytes(lines)  # as if the current file had not been removed yet
    audit = AuditLog(tmp_path, limit=len(lines))
    audit.append(change(20))
    assert [one.time for one in audit.history().entries] == list(range(20, 0, -1))


def test_two_servers_append_to_one_log(tmp_path: Path) -> None:
    one, other = AuditLog(tmp_path, limit=5000), AuditLog(tmp_path, limit=5000)
    for number in range(1, 101, 2):
        one.append(change(number))
        other.append(change(number + 1))
    assert [entry.time for entry in one.history(limit=50).entries] == list(range(100, 50, -1))


def test_pages_are_continued_by_their_cursors(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    entries = [
        attempt(number // 3, address=str(number)) if number % 2 else change(number // 3, detail=f"d{number}")
        for number in range(3, 63)
    ]
    for entry in entries:
        audit.append(entry)
    page = audit.entries(limit=7)
    found = list(page.entries)
    while page.cursor:
        audit.append(change(1000))  # newer entries do not move the pages
        page = audit.entries(7, cursor=page.cursor)
        found += page.entries
    assert len(found) == len(entries)
    assert sorted(map(str, found)) == sorted(map(str, entries))
    assert [entry.time for entry in found] == sorted((entry.time for entry in entries), reverse=True)


def test_pages_lose_nothing_when_the_clock_was_set_back(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    times = [100, 101, 102, 50, 51, 52, 40]
    for time in times:
        audit.append(change(time))
    page = audit.history(limit=2)
    found = list(page.entries)
    while page.cursor:
        page = audit.history(limit=2, cursor=page.cursor)
        found += page.entries
    assert [entry.time for entry in found] == times[::-1]


def test_a_page_of_long_entries_ends_early(tmp_path: Path) -> None:
    audit = AuditLog(tmp_path)
    for number in range(1, 1001):
        audit.append(change(number, detail="\x1b" * 1000))
    page = audit.entries(limit=1000)
    assert 10 < len(page.entries) < 500
    assert page.cursor


@pytest.mark.parametrize("cursor", ["x", "1", "nan:1", "inf:1", "1:-1", "1:x", ":", "\x1b[31m"])
def test_a_strange_cursor_is_refused(tmp_path: Path, cursor: str) -> None:
    with pytest.raises(InvalidArgument, match="does not come from this server") as raised:
        AuditLog(tmp_path).entries(cursor=cursor)
    assert raised.value.message.isprintable()


def test_appending_does_not_wait_for_the_disk(tmp_path: Path) -> None:
    async def scenario() -> None:
        audit = AuditThread(AuditLog(tmp_path))
        with edited(tmp_path / "audit.jsonl"):  # as another server that rotates the files
            for number in range(1, 101):
                audit.append(change(number))
            reading = asyncio.ensure_future(audit.read(lambda log: log.history().entries))
            await asyncio.sleep(0)
            assert not reading.done()
            assert not (tmp_path / "audit.jsonl").exists()
        assert [entry.time for entry in await reading] == list(range(100, 0, -1))
        audit.append(change(101))
        await audit.close()
        assert '"time": 101.0' in (tmp_path / "audit.jsonl").read_text()
        audit.append(change(102))
        assert '"time": 102.0' in (tmp_path / "audit.jsonl").read_text()

    asyncio.run(scenario())


def test_pages_are_made_off_the_event_loop(home: Callable[..., Any], repository: Path) -> None:
    async def scenario() -> None:
        async with home(repository) as server:
            readers = {
                await server.lifecycle.history(form=lambda page: threading.get_ident()),
                await server.lifecycle.audit(form=lambda page: threading.get_ident()),
            }
            assert len(readers) == 1
            assert threading.get_ident() not in readers

    asyncio.run(scenario())


def test_a_disk_that_is_too_slow_bounds_the_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        audit = AuditThread(AuditLog(tmp_path))
        with edited(tmp_path / "audit.jsonl"):
            for number in range(20_000):
                audit.append(change(number, detail="x" * 500))
        await audit.close()

    asyncio.run(scenario())
    assert "entries of the audit log were dropped" in caplog.text
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 9_000_000


@pytest.mark.parametrize("name", ["audit.jsonl", "audit.jsonl.1", "refusals.jsonl"])
def test_a_pipe_in_place_of_a_file_is_refused(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InvalidArgument, match=f"{name}' cannot be used: it is not a regular file. Remove it"):
        AuditLog(tmp_path)


def test_a_file_that_becomes_a_pipe_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    audit = AuditLog(tmp_path)
    os.mkfifo(tmp_path / "audit.jsonl")
    audit.append(change(1))
    assert audit.history().entries == []
    assert "cannot be written" in caplog.text
    assert "cannot be read" in caplog.text


@pytest.mark.timeout(60)
def test_a_huge_line_is_skipped(tmp_path: Path) -> None:
    with (tmp_path / "audit.jsonl").open("wb") as file:
        file.truncate(80_000_000)  # one line of zero bytes
    audit = AuditLog(tmp_path)
    assert audit.history().entries == []
    audit.append(change(1))
    audit.append(change(2))
    assert [entry.time for entry in audit.history().entries] == [2, 1]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 5_000_000


def test_a_stopped_process_that_holds_the_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit_log, "_LOCK_SECONDS", 0.1)
    audit = AuditLog(tmp_path)
    with edited(tmp_path / "audit.jsonl"):
        audit.append(change(1))
    assert "another process holds the lock" in caplog.text
    audit.append(change(2))
    assert [entry.time for entry in audit.history().entries] == [2]
