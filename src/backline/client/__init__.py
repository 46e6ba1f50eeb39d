"""The user's side: `connect(url)` and `connect_async(url)`, over HTTP, gRPC or inside the program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from backline.client.aio import AsyncClient, AsyncModel
from backline.client.options import ClientOptions
from backline.client.result import InferResult
from backline.client.sync import Client, Model

__all__ = [
    "AsyncClient",
    "AsyncModel",
    "Client",
    "ClientOptions",
    "InferResult",
    "Model",
    "connect",
    "connect_async",
]


def connect(
    url: str,
    *,
    timeout: float = 60.0,
    connect_timeout: float = 10.0,
    headers: Mapping[str, str] | None = None,
    verify: bool = True,
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    max_connections: int = 256,
    retries: int = 1,
) -> Client:
    """A synchronous client, for any number of threads.

    `url` is http://host:8000, https://host, grpc://host:8001, grpcs://host, unix:/path/of/socket (HTTP), grpc+unix:/path, or
    inproc:///path/of/repository, which loads the models into this program. Without a port http means 8000, grpc 8001, https and grpcs 443.
    Over the network nothing is sent before the first request. The other arguments are those of ClientOptions.

    >>> with connect("http://localhost:8000") as client:
    ...     notes = client["basic_pitch"](audio)
    """
    options = ClientOptions(
        timeout, connect_timeout, headers or {}, verify, ca, certificate, key, max_connections, retries
    )
    return Client(url, options)


def connect_async(
    url: str,
    *,
    timeout: float = 60.0,
    connect_timeout: float = 10.0,
    headers: Mapping[str, str] | None = None,
    verify: bool = True,
    ca: str | Path | None = None,
    certificate: str | Path | None = None,
    key: str | Path | None = None,
    max_connections: int = 256,
    retries: int = 1,
) -> AsyncClient:
    """An asyncio client; the arguments are those of `connect`. Not a coroutine: it connects with the first request.

    >>> async with connect_async("grpc://localhost:8001") as client:
    ...     notes = await client["basic_pitch"](audio)
    """
    options = ClientOptions(
        timeout, connect_timeout, headers or {}, verify, ca, certificate, key, max_connections, retries
    )
    return AsyncClient(url, options)
