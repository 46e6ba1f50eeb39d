"""The client of the Backline model server, and the types that it shares with the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backline_client.version import __version__

if TYPE_CHECKING:
    from backline_client.client import (
        AsyncClient,
        AsyncModel,
        Client,
        ClientOptions,
        InferResult,
        Model,
        connect,
        connect_async,
    )

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "Client",
    "ClientOptions",
    "InferResult",
    "Model",
    "__version__",
    "connect",
    "connect_async",
]


def __getattr__(name: str) -> Any:
    """Imports the client on first use, because the server imports only the shared types."""
    if name not in __all__:
        raise AttributeError(f"module 'backline_client' has no attribute {name!r}")
    from backline_client import client

    return getattr(client, name)


def __dir__() -> list[str]:
    return sorted(__all__)
