"""The cache of remote files: shared contents, damage, a full disk, several processes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from backline.repository.remote.cache import KEEP_SECONDS, ContentCache
from backline_client.system.file_lock import Stopped
from backline_client.values.errors import Unavailable
from support import models
from support.web import WebServer

from .conftest import Open, fetch, scan

NAME = "/files/detector.onnx"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return models.slow(tmp_path / "source", size=512, layers=2).read_bytes()


def blobs(cache: Path) -> list[Path]:
    return sorted(file for file in (cache / "blobs").rglob("*") if file.is_file())


def test_equal_contents_are_stored_once_and_linked(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    web.put("/a/one.onnx", model)
    web.put("/b/two.onnx", model)
    one, two = opened(f"{web.url}/a/one.onnx"), opened(f"{web.url}/b/two.onnx")
    first, second = fetch(one, scan(one)["one"]), fetch(two, scan(two)["two"])
    assert len(blobs(cache)) == 1
    assert first.path.stat().st_ino == second.path.stat().st_ino == blobs(cache)[0].stat().st_ino


def test_a_fetched_version_is_not_downloaded_again(web: WebServer, model: bytes, opened: Open) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    for _ in range(3):
        fetch(repository, scan(repository)["detector"])
    again = opened(web.url + NAME)
    fetch(again, scan(again)["detector"])
    assert web.gets(NAME) == 1


def test_a_truncated_content_is_noticed_and_downloaded_again(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    web.put(NAME, model)
    first = opened(web.url + NAME)
    fetch(first, scan(first)["detector"])
    os.truncate(blobs(cache)[0], 100)
    second = opened(web.url + NAME)
    assert fetch(second, scan(second)["detector"]).path.read_bytes() == model
    assert web.gets(NAME) == 2


def test_a_changed_byte_is_noticed_by_the_next_process(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    web.put(NAME, model)
    first = opened(web.url + NAME)
    fetched = fetch(first, scan(first)["detector"])
    status = fetched.path.stat()
    with fetched.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"\xff")
    os.utime(
        fetched.path, ns=(status.st_atime_ns, status.st_mtime_ns)
    )  # a failing disk does not change the time
    second = opened(web.url + NAME)
    assert fetch(second, scan(second)["detector"]).path.read_bytes() == model


def test_a_cut_download_is_resumed(web: WebServer, model: bytes, opened: Open) -> None:
    web.put(NAME, model).cuts = [100_000, 200_000]
    repository = opened(web.url + NAME)
    assert fetch(repository, scan(repository)["detector"]).path.read_bytes() == model
    ranges = [asked.headers.get("range") for asked in web.asked if asked.method == "GET"]
    assert ranges == [None, "bytes=100000-", "bytes=300000-"]


def test_a_download_restarts_on_a_server_without_ranges(web: WebServer, model: bytes, opened: Open) -> None:
    page = web.put(NAME, model)
    page.cuts, page.ranges = [100_000], False
    repository = opened(web.url + NAME)
    heard: list[tuple[int, int]] = []
    assert fetch(repository, scan(repository)["detector"], heard=heard).path.read_bytes() == model
    assert heard[-1] == (len(model), len(model))


def test_a_failed_download_leaves_no_partial_files(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    web.put(NAME, model).cuts = [1000, 0, 0, 0, 0, 0]
    repository = opened(web.url + NAME)
    with pytest.raises(Unavailable, match=r"ended after 1,000 of .* bytes"):
        fetch(repository, scan(repository)["detector"])
    assert blobs(cache) == []
    assert list((cache / "partial").iterdir()) == []
    assert list((cache / "trees").iterdir()) == []


def test_concurrent_fetches_download_once(web: WebServer, model: bytes, opened: Open) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)

    async def fetch_all() -> set[Path]:
        found = (await repository.scan())[0]
        fetched = await asyncio.gather(
            *(repository.fetch(found, found.versions[0], lambda here, total: None) for _ in range(5))
        )
        return {one.path for one in fetched}

    assert len(asyncio.run(fetch_all())) == 1
    assert web.gets(NAME) == 1


FETCH = """
import asyncio, sys
from pathlib import Path
from backline.backends.registry import FORMATS
from backline_client.values.errors import BacklineError
from backline.repository.location import open_repository

async def main():
    repository = open_repository(sys.argv[1], formats=FORMATS, cache=Path(sys.argv[2]))
    model = (await repository.scan())[0]
    fetched = await repository.fetch(model, model.versions[0], lambda here, total: None)
    print(len(fetched.path.read_bytes()))
    await repository.close()

try:
    asyncio.run(main())
except BacklineError as error:
    print(type(error).__name__, error.message)
"""


def test_two_processes_download_once(web: WebServer, model: bytes, cache: Path) -> None:
    web.put(NAME, model)
    arguments = [sys.executable, "-c", FETCH, web.url + NAME, str(cache)]
    running = [subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(len(model))] * 2
    assert web.gets(NAME) == 1


def test_a_process_killed_during_a_download_leaves_nothing_visible(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    page = web.put(NAME, model)
    page.stall = threading.Event()
    killed = subprocess.Popen([sys.executable, "-c", FETCH, web.url + NAME, str(cache)])
    assert page.stalled.wait(30)
    killed.kill()
    killed.wait(10)
    page.stall.set()
    assert blobs(cache) == []
    assert list((cache / "trees").iterdir()) == []
    repository = opened(web.url + NAME)
    assert fetch(repository, scan(repository)["detector"]).path.read_bytes() == model


def test_the_event_loop_keeps_running_while_a_server_stalls(
    web: WebServer, model: bytes, opened: Open
) -> None:
    page = web.put(NAME, model)
    page.stall = threading.Event()
    repository = opened(web.url + NAME)

    async def fetch_and_tick() -> None:
        found = (await repository.scan())[0]
        fetching = asyncio.ensure_future(repository.fetch(found, found.versions[0], lambda here, total: None))
        assert await asyncio.to_thread(page.stalled.wait, 30)
        await asyncio.wait_for(repository.changes(0.001).__anext__(), 1)
        assert page.stall is not None
        page.stall.set()
        assert (await fetching).path.read_bytes() == model

    asyncio.run(fetch_and_tick())


def test_a_cancelled_fetch_leaves_no_partial_files(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    page = web.put(NAME, model)
    page.stall = threading.Event()
    repository = opened(web.url + NAME)

    async def fetch_and_cancel() -> None:
        found = (await repository.scan())[0]
        fetching = asyncio.ensure_future(repository.fetch(found, found.versions[0], lambda here, total: None))
        assert await asyncio.to_thread(page.stalled.wait, 30)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching

    asyncio.run(fetch_and_cancel())
    page.stall.set()
    lock = next((cache / "locks").iterdir()).name
    with ContentCache(cache).lock(lock):  # the thread has released it
        assert blobs(cache) == []
        assert list((cache / "partial").iterdir()) == []


def test_a_full_disk_is_reported_and_leaves_no_partial_files(
    web: WebServer, model: bytes, cache: Path
) -> None:
    web.put(NAME, model)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n" + FETCH
    arguments = [sys.executable, "-c", limited, web.url + NAME, str(cache)]
    output = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True).stdout
    assert output.startswith(
        f"Unavailable the disk of the model cache '{cache}' is full, so it cannot store 'detector.onnx'"
    )
    assert "free space there or choose another cache folder" in output
    assert blobs(cache) == []
    assert list((cache / "partial").iterdir()) == []


def test_a_version_that_does_not_fit_is_refused_before_the_download(
    web: WebServer, model: bytes, cache: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    found = scan(repository)["detector"]
    monkeypatch.setattr("shutil.disk_usage", lambda path: shutil._ntuple_diskusage(10_000, 9_000, 1_000))
    with pytest.raises(Unavailable, match=rf"{len(model):,} bytes are needed, 1,000 bytes are free"):
        fetch(repository, found)
    assert web.gets(NAME) == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        Unavailable, match=r"the model cache '.*/file/cache' cannot be created: Not a directory"
    ):
        ContentCache(tmp_path / "file" / "cache")


def test_a_wait_for_a_lock_can_be_stopped(cache: Path) -> None:
    contents = ContentCache(cache)
    stop = threading.Event()
    waiting: list[type] = []

    def wait() -> None:
        try:
            with contents.lock("a", lambda: bool(stop.is_set())):
                waiting.append(object)
        except Stopped:
            waiting.append(Stopped)

    with contents.lock("a"):
        thread = threading.Thread(target=wait)
        thread.start()
        stop.set()
        thread.join(10)
    assert waiting == [Stopped]


def test_unused_entries_are_removed_after_keep_seconds(
    web: WebServer, model: bytes, cache: Path, opened: Open
) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    fetched = fetch(repository, scan(repository)["detector"])
    contents = ContentCache(cache)
    contents.prune()
    assert fetched.path.is_file()
    contents.prune(time.time() + KEEP_SECONDS + 60)
    assert not fetched.path.exists()
    assert blobs(cache) == []


def test_calls_of_a_closed_repository_fail_with_a_reason(web: WebServer, model: bytes, opened: Open) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    asyncio.run(repository.close())
    with pytest.raises(Unavailable, match="is closed"):
        scan(repository)


def test_changes_come_at_the_interval_and_end_with_the_repository(
    web: WebServer, model: bytes, opened: Open
) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)

    async def count() -> int:
        seen = 0
        async for _ in repository.changes(0.001):
            seen += 1
            if seen == 3:
                await repository.close()
        return seen

    assert asyncio.run(asyncio.wait_for(count(), 10)) == 3


def test_a_listing_that_cannot_be_recorded_is_only_a_warning(
    web: WebServer, model: bytes, cache: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    (cache / "listings").rmdir()
    (cache / "listings").write_text("")
    assert list(scan(repository)) == ["detector"]
    assert "cannot record what a repository holds: Not a directory" in caplog.text


def test_a_damaged_record_of_a_listing_is_ignored(
    web: WebServer, model: bytes, cache: Path, opened: Open, caplog: pytest.LogCaptureFixture
) -> None:
    web.put(NAME, model)
    scan(opened(web.url + NAME))
    for file in (cache / "listings").iterdir():
        file.write_bytes(b'{"location": ')
    web.stop()
    with pytest.raises(Unavailable, match="cannot be reached"):
        scan(opened(web.url + NAME))
    assert "cannot be read and is ignored" in caplog.text


def test_files_are_copied_where_hard_links_fail(
    web: WebServer, model: bytes, cache: Path, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    web.put(NAME, model)
    repository = opened(web.url + NAME)
    found = scan(repository)["detector"]
    fetched = fetch(repository, found)
    assert fetched.path.read_bytes() == model
    assert fetched.path.stat().st_ino != blobs(cache)[0].stat().st_ino
    os.truncate(fetched.path, 10)
    assert fetch(repository, found).path.read_bytes() == model
    assert web.gets(NAME) == 1


def test_only_the_owner_may_enter_the_cache(tmp_path: Path) -> None:
    """It has what the server read with its own credentials."""
    ContentCache(tmp_path / "a" / "cache")

    assert (tmp_path / "a" / "cache").stat().st_mode & 0o777 == 0o700
