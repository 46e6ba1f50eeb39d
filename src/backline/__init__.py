"""Backline, a model server: run it, embed it in a program, or connect to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backline.version import __version__

if TYPE_CHECKING:
    from backline.client import connect, connect_async

__all__ = ["__version__", "connect", "connect_async"]


def __getattr__(name: str) -> Any:
    # Lazy, so that a server does not import the client.
    if name in ("connect", "connect_async"):
        from backline import client

        return getattr(client, name)
    raise AttributeError(f"module 'backline' has no attribute {name!r}")
