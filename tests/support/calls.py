"""Counts calls of Python functions, a measure of cost that does not depend on the machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class CallCounter:
    """Counts the calls of Python functions on this thread, and on all threads that start while it is
    `counting`.
    """

    def __init__(self) -> None:
        self.calls = 0

    def _called(self, frame: FrameType, event: str, argument: object) -> None:
        self.calls += event == "call"

    @contextmanager
    def counting(self) -> Iterator[None]:
        before = sys.getprofile()
        threading.setprofile(self._called)
        sys.setprofile(self._called)
        try:
            yield
        finally:
            sys.setprofile(before)
            threading.setprofile(None)
