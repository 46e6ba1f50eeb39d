"""Backline, a model server: run it, embed it in a program, or connect to it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from backline_client.version import __version__

if TYPE_CHECKING:
    from backline.background import serve
    from backline.embedded.embedded import Embedded
    from backline.embedded.function import Function
    from backline.lifecycle.options import LifecycleOptions
    from backline_client.client import connect, connect_async

__all__ = [
    "Embedded",
    "Function",
    "LifecycleOptions",
    "__version__",
    "bench",
    "connect",
    "connect_async",
    "doctor",
    "serve",
    "tune",
]

#: The module of each name that is imported only on first use, so that a server does not import the client, or
#: a client the server.
_MODULES = {
    "connect": "backline_client",
    "connect_async": "backline_client",
    "Embedded": "backline.embedded.embedded",
    "Function": "backline.embedded.function",
    "LifecycleOptions": "backline.lifecycle.options",
    "serve": "backline.background",
}

#: The commands that are functions too.
_COMMANDS = ("bench", "doctor", "tune")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    if name in _COMMANDS:
        from backline.cli.commands import COMMANDS

        for record in COMMANDS.built_in:
            if record.name == name:
                module, _, function = record.function.partition(":")
                return getattr(import_module(module), function)
    raise AttributeError(f"module 'backline' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)  # completion in a notebook then also offers names that are not imported yet
