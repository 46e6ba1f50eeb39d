"""Modules that are imported when a test first uses them: each process of a test run reads every test file."""

from __future__ import annotations

from importlib import import_module
from typing import Any


class _Lazy:
    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("__", "_mock", "_pytest", "pytest")):
            raise AttributeError(attribute)  # pytest looks for its marks in all that a test file defines
        return getattr(import_module(self._name), attribute)


def lazy(name: str) -> Any:
    """A stand-in for the module `name`, such as "torch"."""
    return _Lazy(name)
