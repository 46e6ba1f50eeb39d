"""When changes of files are reported, on a clock that the test sets."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backline.system import file_watch
from backline.system.file_watch import WATCH_INTERVAL, FileWatch
from support.waiting import until


class Clock:
    """Stands in for the event loop: keeps the one timer of a watch, and the one look at its files."""

    def __init__(self) -> None:
        self.delay = 0.0
        self.cancelled = False

    def call_later(self, delay: float, look: Callable[[], None]) -> Clock:
        self.delay, self._look = delay, look
        return self

    def cancel(self) -> None:
        self.cancelled = True

    def run_in_executor(self, _: None, look: Callable[[], Any]) -> Future[Any]:
        self._looking: Future[Any] = Future()
        self._found = look()
        return self._looking

    def begin_look(self) -> None:
        self._look()

    def end_look(self) -> None:
        if self._looking.set_running_or_notify_cancel():
            self._looking.set_result(self._found)

    def tick(self) -> None:
        self.begin_look()
        self.end_look()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / "server.crt", tmp_path / "server.key"]
    for path in found:
        path.write_text("old")
    return found


def watch(files: list[Path], settle: float = 0.0) -> tuple[Clock, list[str], FileWatch]:
    clock, reports = Clock(), []
    found = FileWatch(files, lambda: reports.append("changed"), clock, settle=settle)  # type: ignore[arg-type]
    return clock, reports, found


def test_each_change_is_reported_once(files: list[Path]) -> None:
    clock, reports, _ = watch(files)
    clock.tick()
    assert reports == []
    for change in (
        lambda: files[0].write_text("longer"),
        lambda: os.utime(files[1], (1, 1)),
        files[0].unlink,
        lambda: files[0].write_text("again"),
    ):
        reports.clear()
        change()
        clock.tick()
        clock.tick()
        assert reports == ["changed"]
        assert clock.delay == WATCH_INTERVAL


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_a_change(files: list[Path]) -> None:
    clock, reports, _ = watch(files)
    new = files[0].with_name("new")
    new.write_text("new")
    os.utime(new, ns=(0, files[0].stat().st_mtime_ns))
    new.replace(files[0])
    clock.tick()
    assert reports == ["changed"]


def test_files_that_still_change_are_not_reported(files: list[Path]) -> None:
    clock, reports, _ = watch(files, settle=0.2)
    for path in files:
        path.write_text("longer")
        clock.tick()
        assert reports == []
        assert clock.delay == 0.2
    clock.tick()
    assert reports == ["changed"]
    assert clock.delay == WATCH_INTERVAL


def test_what_the_caller_has_read_is_not_reported(files: list[Path]) -> None:
    clock, reports, found = watch(files)
    files[0].write_text("longer")
    found.mark_read()
    clock.tick()
    assert reports == []
    found.close()
    assert clock.cancelled


def test_a_look_that_began_before_the_caller_read_the_files_reports_nothing(files: list[Path]) -> None:
    clock, reports, found = watch(files)
    clock.begin_look()
    files[0].write_text("longer")
    found.mark_read()
    clock.end_look()
    clock.tick()
    assert reports == []


def test_a_look_that_ends_after_the_watch_was_closed_reports_nothing(files: list[Path]) -> None:
    clock, reports, found = watch(files)
    files[0].write_text("longer")
    clock.begin_look()
    found.close()
    clock.end_look()
    assert reports == []


async def test_the_event_loop_never_waits_for_the_files(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_watch, "WATCH_INTERVAL", 0.01)
    found = FileWatch(files, lambda: None, asyncio.get_running_loop())
    looked: list[threading.Thread] = []
    monkeypatch.setattr(file_watch, "file_state", lambda path: looked.append(threading.current_thread()))

    await asyncio.to_thread(until, lambda: len(looked) >= 4)
    found.close()

    assert threading.current_thread() not in looked


def test_a_full_executor_delays_no_report(files: list[Path]) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        gate, changed = threading.Event(), asyncio.Event()
        blocked = loop.run_in_executor(None, gate.wait)
        watch = FileWatch(files, changed.set, loop)
        try:
            files[0].write_text("changed")
            await asyncio.wait_for(changed.wait(), 30)
            assert await asyncio.wait_for(watch.run(files[0].read_text), 30) == "changed"
        finally:
            watch.close()
            gate.set()
            await blocked

    asyncio.run(scenario())
