"""The threads on which models are loaded: one for each load, and none that keeps the server from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def loads_running() -> bool:
    """Whether a load is still under way anywhere in this process: a runtime that is at work does not survive an orderly end of it."""
    return any(isinstance(thread, _LoadThread) for thread in threading.enumerate())


class _LoadThread(threading.Thread):
    """Is known by its class."""


class LoadThreads(Executor):
    """Runs each call on a daemon thread of its own; how many there are at a time is the caller's matter.

    A runtime cannot be interrupted. In a pool a load that never ends would take a place from all later ones for ever, and the interpreter
    would wait for it at its end.
    """

    def __init__(self) -> None:
        self._numbers = count(1)

    def submit(self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Begins a call at once."""
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        _LoadThread(target=run, name=f"load_{next(self._numbers)}", daemon=True).start()
        return future
