"""The client: `connect(url)` and `connect_async(url)`, over HTTP, over gRPC or within the process."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Concatenate, ParamSpec, TypeVar

from backline_client.client.aio import AsyncClient, AsyncModel
from backline_client.client.options import ClientOptions
from backline_client.client.result import InferResult
from backline_client.client.sync import Client, Model

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


P = ParamSpec("P")
AnyClient = TypeVar("AnyClient", Client, AsyncClient)


def _taking(
    options: Callable[P, ClientOptions],
) -> Callable[[Callable[[str, ClientOptions], AnyClient]], Callable[Concatenate[str, P], AnyClient]]:
    """Makes a function of a URL and options take the fields of the options as arguments."""

    def decorate(function: Callable[[str, ClientOptions], AnyClient]) -> Callable[..., AnyClient]:
        @wraps(function)
        def connecting(url: str, *positional: P.args, **named: P.kwargs) -> AnyClient:
            return function(url, options(*positional, **named))

        url, _ = signature(function).parameters.values()
        shown = signature(function).replace(parameters=[url, *signature(options).parameters.values()])
        connecting.__signature__ = shown  # type: ignore[attr-defined]
        return connecting

    return decorate


@_taking(ClientOptions)
def connect(url: str, options: ClientOptions) -> Client:
    """Returns a synchronous client, which any number of threads may share.

    `url` is http://host:8000, https://host, grpc://host:8001, grpcs://host, unix:/path/to/socket (HTTP),
    grpc+unix:/path, or inproc:///path/to/repository. The last of these loads the models into this process, as
    Embedded does, and may end with options, as in ?model=add1&memory_budget=2GiB. The default port is 8000
    for http, 8001 for grpc, and 443 for https and grpcs.

    To use several servers with the same models, separate their URLs by commas, or give a host name that
    resolves to all of them (dns+http://name, dns+grpcs://name), or a Ray deployment (ray://deployment); each
    request goes to one of the servers. A network client connects when it sends its first request. The other
    arguments are the fields of ClientOptions.

    >>> with connect("http://localhost:8000") as client:
    ...     notes = client["basic_pitch"](audio)
    """
    return Client(url, options)


@_taking(ClientOptions)
def connect_async(url: str, options: ClientOptions) -> AsyncClient:
    """Returns an asyncio client, which connects when it sends its first request. The arguments are those of
    `connect`.

    >>> async with connect_async("grpc://localhost:8001") as client:
    ...     notes = await client["basic_pitch"](audio)
    """
    return AsyncClient(url, options)
