"""Loads run at the same time, on threads that are used again."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from backline.lifecycle.loading import version_load
from backline.lifecycle.loading.version_load import LoadThreads, loads_running


class Files:
    """Something that a load holds."""


def wait_until_idle(threads: LoadThreads) -> None:
    while not threads._idle:
        threading.Event().wait(0.001)


def test_loads_run_together_and_their_threads_are_used_again() -> None:
    threads = LoadThreads()
    together = threading.Barrier(2)

    def load() -> threading.Thread:
        together.wait()
        return threading.current_thread()

    first = {future.result(10) for future in (threads.submit(load), threads.submit(load))}
    wait_until_idle(threads)
    again = threads.submit(threading.current_thread).result(10)

    assert len(first) == 2
    assert again in first


def test_an_idle_thread_counts_as_no_load_and_keeps_no_files() -> None:
    threads = LoadThreads()
    files = Files()
    gone = weakref.ref(files)
    loading = threads.submit(lambda held: loads_running(), files)
    assert loading.result(10)

    wait_until_idle(threads)
    del files, loading
    gc.collect()

    assert gone() is None
    assert not any(thread.loading for thread in threading.enumerate() if hasattr(thread, "loading"))


def test_an_idle_thread_ends_and_later_loads_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_load, "_IDLE", 0.001)
    threads = LoadThreads()
    first = threads.submit(threading.current_thread).result(10)
    first.join(10)

    assert not first.is_alive()
    assert threads.submit(int).result(10) == 0


def test_no_call_is_lost_while_threads_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version_load, "_IDLE", 0.0)
    threads = LoadThreads()

    with ThreadPoolExecutor(4) as callers:
        numbers = list(callers.map(lambda number: threads.submit(abs, number).result(10), range(400)))

    assert numbers == list(range(400))


def test_an_error_reaches_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        LoadThreads().submit(lambda: 1 / 0).result(10)
