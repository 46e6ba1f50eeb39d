"""A model's own readiness: its `is_ready`, polled."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeAlias

from backline.workers.child.tracebacks import reason

Start: TypeAlias = Callable[[Coroutine[Any, Any, Any]], Future[Any]]

#: Seconds between polls, and for one to return (Triton's limit).
_PAUSE = 1.0
_PATIENCE = 5.0


class ReadinessWatch:
    """Polls a model, and reports changes: "" if it is ready, or why not.

    It is polled on a separate thread, so that a model that computes does not count as unready. Only one poll
    runs at a time; while it hangs, no other starts.
    """

    def __init__(
        self, is_ready: Callable[[], Any], start: Start, tell: Callable[[str], None], folder: str
    ) -> None:
        """`start` runs a coroutine of the model."""
        self._is_ready = is_ready
        self._start_coroutine = start
        self._tell = tell
        self._folder = folder
        self._asked: Future[Any] | None = None
        self._told = ""

    def start(self) -> None:
        """Polls once, and from then on in the background."""
        self._look()
        threading.Thread(target=self._watch, name="backline-readiness", daemon=True).start()

    def _watch(self) -> None:
        pause = threading.Event()
        while not pause.wait(_PAUSE):
            self._look()

    def _look(self) -> None:
        found = self._ask()
        if found != self._told:
            self._told = found
            self._tell(found)

    def _ask(self) -> str:
        if self._asked is None:
            self._asked = Future()
            threading.Thread(target=self._run, args=(self._asked,), name="is_ready", daemon=True).start()
        try:
            answer = self._asked.result(_PATIENCE)
        except TimeoutError:
            if not self._asked.done():
                return f"its is_ready gave no answer within {_PATIENCE:g} s"
            answer = self._asked.exception()
        except BaseException as error:
            answer = error
        self._asked = None
        if isinstance(answer, BaseException):
            return f"its is_ready has failed: {reason(answer, self._folder)}"
        if not isinstance(answer, bool):
            return f"its is_ready returned a {type(answer).__name__}, not a bool"
        return "" if answer else "its is_ready returned False"

    def _run(self, asked: Future[Any]) -> None:
        try:
            answer = self._is_ready()
            asked.set_result(
                self._start_coroutine(answer).result() if asyncio.iscoroutine(answer) else answer
            )
        except BaseException as error:
            asked.set_exception(error)
