"""Loads run at the same time, on threads that are used again."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from functools import partial

import pytest

from backline.lifecycle.loading import load_threads
from backline.lifecycle.loading.load_threads import LoadThreads, loads_running


class Files:
    """Something that a load holds."""


def keep(result: object) -> None:
    raise AssertionError("nobody cancelled the load")


async def idle(threads: LoadThreads) -> None:
    while not threads._idle:  # noqa: ASYNC110  # a thread signals nothing when it becomes idle
        await asyncio.sleep(0.001)


async def test_loads_run_together_and_their_threads_are_used_again() -> None:
    threads = LoadThreads()
    together = threading.Barrier(2)

    def load() -> threading.Thread:
        together.wait(10)
        return threading.current_thread()

    first = set(await asyncio.gather(threads.run(load, keep), threads.run(load, keep)))
    await idle(threads)
    again = await threads.run(threading.current_thread, keep)

    assert len(first) == 2
    assert again in first


async def test_an_idle_thread_counts_as_no_load_and_keeps_no_files() -> None:
    threads = LoadThreads()
    files = Files()
    gone = weakref.ref(files)
    loading = threads.run(partial(lambda held: (loads_running(), threading.current_thread()), files), keep)
    counted, thread = await loading

    await idle(threads)
    del files, loading
    gc.collect()

    assert counted
    assert gone() is None
    assert not thread.loading  # type: ignore[attr-defined]


async def test_an_idle_thread_ends_and_later_loads_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_threads, "_IDLE", 0.001)
    threads = LoadThreads()
    first = await threads.run(threading.current_thread, keep)
    first.join(10)

    assert not first.is_alive()
    assert await threads.run(int, keep) == 0


async def test_no_call_is_lost_while_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_threads, "_IDLE", 0.0)
    threads = LoadThreads()

    async def ask(numbers: range) -> list[int]:
        return [await threads.run(partial(abs, number), keep) for number in numbers]

    found = await asyncio.gather(*(ask(range(first, first + 100)) for first in range(0, 400, 100)))

    assert [number for numbers in found for number in numbers] == list(range(400))


async def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await LoadThreads().run(lambda: 1 / 0, keep)


async def test_the_result_of_a_cancelled_load_is_discarded_once_it_is_there() -> None:
    go_on = threading.Event()
    discarded: asyncio.Queue[str] = asyncio.Queue()

    def load() -> str:
        go_on.wait(10)
        return "model"

    loading = LoadThreads().run(load, discarded.put_nowait)
    loading.cancel()
    await asyncio.sleep(0)
    assert discarded.empty()
    go_on.set()

    assert await asyncio.wait_for(discarded.get(), 10) == "model"


async def test_the_error_of_a_cancelled_load_is_nobodys() -> None:
    threads = LoadThreads()
    go_on = threading.Event()

    def load() -> None:
        go_on.wait(10)
        raise OSError("it fails")

    loading = threads.run(load, keep)
    loading.cancel()
    go_on.set()
    await idle(threads)

    assert loading.cancelled()


def test_a_load_that_outlives_its_event_loop_ends_in_silence(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = LoadThreads()
    go_on = threading.Event()

    async def begin() -> None:
        threads.run(lambda: go_on.wait(10), keep)

    asyncio.run(begin())
    go_on.set()
    while not threads._idle:
        threading.Event().wait(0.001)

    assert not recwarn.list
    assert capfd.readouterr().err == ""
