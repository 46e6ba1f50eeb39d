"""A repository on local disk: only files unchanged since the scan are loaded, and changes are noticed."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from backline.repository import file_events, local
from backline.repository.local import LocalRepository
from backline_client.values.errors import NotFound, Unavailable
from support.repositories import ONNX, put
from support.waiting import settled, until

#: Longer than a test, and far longer than any event takes: a change noticed in this time was noticed by an
#: event.
LONG = 600.0


def open_local(path: Path) -> LocalRepository:
    return LocalRepository(path, formats=[ONNX])


async def test_fetch_returns_the_files_in_place(tmp_path: Path) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "12345")
    put(tmp_path / "m" / "labels.txt", "67")
    repository = open_local(tmp_path)
    (model,) = await repository.scan()
    reported: list[tuple[int, int]] = []

    fetched = await repository.fetch(
        model, model.versions[0], lambda done, total: reported.append((done, total))
    )

    assert (fetched.path, fetched.model_folder) == (file, tmp_path / "m")
    assert reported == [(7, 7)]


@pytest.mark.parametrize("change", ["rewritten", "replaced", "removed", "warmup"])
async def test_files_changed_since_the_scan_are_not_loaded(change: str, tmp_path: Path) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "aaaa")
    sample = put(tmp_path / "m" / "warmup" / "sample", "bbbb")
    repository = open_local(tmp_path)
    (model,) = await repository.scan()
    if change == "rewritten":
        file.write_text("other text")
    elif change == "replaced":
        status = file.stat()
        os.utime(put(tmp_path / "new", "cccc"), ns=(status.st_atime_ns, status.st_mtime_ns))
        (tmp_path / "new").rename(file)
    elif change == "removed":
        file.unlink()
    else:
        sample.unlink()

    fetched = await repository.fetch(model, model.versions[0], lambda done, total: None)

    with pytest.raises(Unavailable, match=r"' changed while it was being loaded"):
        fetched.check()


async def test_a_changed_configuration_does_not_prevent_a_fetch(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    config = put(tmp_path / "m" / "config.pbtxt", "instance_group { count: 1 }")
    repository = open_local(tmp_path)
    (model,) = await repository.scan()

    config.write_text("instance_group { count: 2 }")

    fetched = await repository.fetch(model, model.versions[0], lambda done, total: None)
    fetched.check()
    assert fetched.path.exists()


async def test_a_repository_that_vanishes_is_reported_and_may_come_back(tmp_path: Path) -> None:
    put(tmp_path / "models" / "m" / "1" / "model.onnx")
    repository = open_local(tmp_path / "models")
    before = await repository.scan()
    shutil.move(tmp_path / "models", tmp_path / "away")

    with pytest.raises(NotFound, match=f"model repository '{tmp_path / 'models'}' does not exist"):
        await repository.scan()

    shutil.move(tmp_path / "away", tmp_path / "models")
    assert await repository.scan() == before


async def test_a_change_is_noticed_by_an_event(tmp_path: Path) -> None:
    put(tmp_path / "m" / "1" / "model.onnx")
    async with Noticed(open_local(tmp_path)) as noticed:
        put(tmp_path / "m" / "2" / "model.onnx")
        await noticed.next()

        shutil.rmtree(tmp_path / "m" / "1")
        await noticed.next()

        put(tmp_path / "m" / "config.pbtxt", "max_batch_size: 8")
        await noticed.next()


async def test_a_file_being_written_is_one_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_events, "_SETTLED", 1.0)
    async with Noticed(open_local(tmp_path)) as noticed:
        with put(tmp_path / "m" / "1" / "model.onnx").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(b"x" * 1000)
                await asyncio.sleep(0.02)  # the pace of a slow copy

        await noticed.next()

        assert noticed.count == 1


async def test_a_swapped_folder_is_still_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_events, "_CHECK", 0.1)
    put(tmp_path / "a" / "m" / "1" / "model.onnx")
    put(tmp_path / "b" / "m" / "2" / "model.onnx")
    (tmp_path / "current").symlink_to("a")
    async with Noticed(open_local(tmp_path / "current")) as noticed:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").rename(tmp_path / "current")
        await noticed.next()
        await noticed.until_quiet()  # a new watch begins with a scan

        put(tmp_path / "b" / "m" / "3" / "model.onnx")
        await noticed.next()


async def test_a_list_of_models_watches_their_folders(tmp_path: Path) -> None:
    put(tmp_path / "far" / "1" / "model.onnx")
    models = put(
        tmp_path / "list" / "models.config",
        f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path}/far" }} }}',
    )
    repository = open_local(models)
    await repository.scan()
    async with Noticed(repository) as noticed:
        put(tmp_path / "far" / "2" / "model.onnx")
        await noticed.next()

        models.write_text("model_config_list {}")
        await noticed.next()


async def test_the_event_loop_never_waits_for_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[threading.Thread] = []
    stat = os.stat

    def noted(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path)):
            looked.append(threading.current_thread())
        return stat(path, *rest, **more)

    monkeypatch.setattr(file_events, "_CHECK", 0.05)
    monkeypatch.setattr(os, "stat", noted)
    async with Noticed(open_local(tmp_path)) as noticed:
        await asyncio.to_thread(put, tmp_path / "m" / "1" / "model.onnx")
        await noticed.next()
        await asyncio.to_thread(until, lambda: len(looked) >= 5)

    assert threading.current_thread() not in looked


@pytest.mark.parametrize("why", ["network", "missing package"])
async def test_without_events_changes_are_polled(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if why == "network":
        monkeypatch.setattr(file_events, "is_remote", lambda path: True)
    else:
        monkeypatch.setitem(__import__("sys").modules, "watchfiles", None)
    changes = open_local(tmp_path).changes(0.01)

    for _ in range(3):
        await asyncio.wait_for(anext(changes), 10)


async def test_without_watches_left_changes_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def refuse(*paths: Path, **options: object) -> AsyncIterator[None]:
        raise OSError(28, "No space left on device")
        yield

    monkeypatch.setattr("watchfiles.awatch", refuse)
    changes = open_local(tmp_path).changes(0.01)

    for _ in range(3):
        await asyncio.wait_for(anext(changes), 10)

    (warning,) = caplog.messages
    assert (
        warning
        == f"'{tmp_path}' cannot be watched (No space left on device) and is scanned every 0.01 seconds"
    )


async def test_inodes_of_network_file_systems_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "is_remote", lambda path: True)
    file = put(tmp_path / "m" / "1" / "model.onnx")
    repository = open_local(tmp_path)
    (before,) = await repository.scan()
    status = file.stat()
    os.utime(put(tmp_path / "same"), ns=(status.st_atime_ns, status.st_mtime_ns))

    (tmp_path / "same").rename(file)

    assert await repository.scan() == [before]


class Noticed:
    """Counts the changes of a repository after the first."""

    def __init__(self, repository: LocalRepository) -> None:
        self.count = 0
        self._changes: AsyncIterator[None] = repository.changes(LONG)
        self._queue: asyncio.Queue[None] = asyncio.Queue()

    async def __aenter__(self) -> Noticed:
        self._task = asyncio.create_task(self._collect())
        await self.next()
        self.count = 0
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def next(self) -> None:
        await asyncio.wait_for(self._queue.get(), 30)

    async def until_quiet(self) -> None:
        """Waits until changes are no longer noticed, and forgets those that were."""
        await asyncio.to_thread(settled, lambda: self.count, 0.6)
        while not self._queue.empty():
            self._queue.get_nowait()

    async def _collect(self) -> None:
        async for _ in self._changes:
            self.count += 1
            self._queue.put_nowait(None)


async def fetch_of(repository: LocalRepository) -> None:
    (model,) = await repository.scan()
    fetched = await repository.fetch(model, model.versions[0], lambda done, total: None)
    fetched.check()


async def test_a_file_that_is_still_being_written_is_not_loaded_by_the_watch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "half")
    repository = open_local(tmp_path)
    repository.changes(LONG)

    pauses: list[float] = []

    async def written_meanwhile(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 5:  # as the lifecycle does when the next scan has found the change
            raise asyncio.CancelledError
        file.write_text("half and the rest" + "." * len(pauses))

    monkeypatch.setattr(local.asyncio, "sleep", written_meanwhile)

    with pytest.raises(asyncio.CancelledError):
        await fetch_of(repository)


async def test_a_change_that_no_scan_finds_is_reported_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "half")
    repository = open_local(tmp_path)
    repository.changes(LONG)
    clock = iter(range(10**6))
    monkeypatch.setattr(local.time, "monotonic", lambda: float(next(clock)))

    async def written_meanwhile(seconds: float) -> None:
        file.write_text("half and the rest")

    monkeypatch.setattr(local.asyncio, "sleep", written_meanwhile)

    with pytest.raises(Unavailable, match="changed while it was being loaded"):
        await fetch_of(repository)


@pytest.mark.parametrize("reason", ["old", "asked for"])
async def test_nobody_waits_for_files_at_rest_or_that_a_request_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    file = put(tmp_path / "m" / "1" / "model.onnx", "whole")
    repository = open_local(tmp_path)
    if reason == "old":
        os.utime(file, (1, 1))
        repository.changes(LONG)

    async def refuse(seconds: float) -> None:
        raise AssertionError("it waited")

    monkeypatch.setattr(local.asyncio, "sleep", refuse)

    await fetch_of(repository)
