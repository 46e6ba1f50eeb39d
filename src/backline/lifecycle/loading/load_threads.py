"""The threads that load models: one for each load, none of which delays the server's exit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from itertools import count
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
Result = TypeVar("Result")


def loads_running() -> bool:
    """Whether a load is running in this process: a runtime at work does not survive an orderly exit."""
    return any(isinstance(thread, _LoadThread) for thread in threading.enumerate())


class _LoadThread(threading.Thread):
    """Recognised by its class."""


class LoadThreads(Executor):
    """Runs each call on a daemon thread; the caller limits their number.

    A runtime cannot be interrupted. In a pool, a load that never ends would occupy a worker for good, and
    block the interpreter's exit.
    """

    def __init__(self) -> None:
        self._numbers = count(1)

    def submit(self, fn: Callable[P, Result], /, *args: P.args, **kwargs: P.kwargs) -> Future[Result]:
        """Starts the call immediately."""
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
