"""Loads run at the same time, on threads that are used again."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
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


class Waiting:
    """A load that goes on until `go_on` is set."""

    def __init__(self, end: Callable[[], str] = lambda: "model") -> None:
        self.go_on = threading.Event()
        self.end = end

    def __call__(self) -> str:
        self.go_on.wait(10)
        return self.end()


async def test_the_result_of_a_cancelled_load_is_discarded_once_it_is_there() -> None:
    load = Waiting()
    discarded: asyncio.Queue[str] = asyncio.Queue()

    loading = asyncio.create_task(LoadThreads().run(load, discarded.put_nowait))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert discarded.empty()
    load.go_on.set()

    assert await asyncio.wait_for(discarded.get(), 10) == "model"


@pytest.mark.parametrize("turns", range(6))
async def test_the_result_of_a_load_that_is_cancelled_as_it_ends_is_not_lost(turns: int) -> None:
    load = Waiting()
    threads = LoadThreads()
    discarded: list[str] = []
    loading = asyncio.create_task(threads.run(load, discarded.append))
    await asyncio.sleep(0)
    load.go_on.set()
    while not threads._idle:
        threading.Event().wait(0.001)  # the loop must not handle the end of the load yet

    for _ in range(turns):
        await asyncio.sleep(0)
    loading.cancel()
    found = [] if (await asyncio.gather(loading, return_exceptions=True))[0] != "model" else ["model"]
    for _ in range(3):
        await asyncio.sleep(0)

    assert found + discarded == ["model"]


async def test_the_error_of_a_cancelled_load_is_nobodys() -> None:
    def fail() -> str:
        raise OSError("it fails")

    load = Waiting(fail)
    threads = LoadThreads()
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context))

    loading = asyncio.create_task(threads.run(load, keep))
    await asyncio.sleep(0)
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    load.go_on.set()
    await idle(threads)
    await asyncio.sleep(0)
    gc.collect()

    assert reported == []


def test_a_load_that_outlives_its_event_loop_ends_in_silence(
    recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = LoadThreads()
    load = Waiting()

    async def begin() -> None:
        asyncio.get_running_loop().call_soon(asyncio.current_task().cancel)  # type: ignore[union-attr]
        await threads.run(load, keep)

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(begin())
    load.go_on.set()
    while not threads._idle:
        threading.Event().wait(0.001)

    assert not recwarn.list
    assert capfd.readouterr().err == ""
