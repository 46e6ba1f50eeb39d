"""What other servers say about a model that they serve."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from backline.backends.backend import RemoteModel
from backline.client.address import Address
from backline.client.aio import open_transport
from backline.client.balanced_transport import BalancedTransport
from backline.client.options import ClientOptions
from backline.client.transport import Transport
from backline.engine.errors import BacklineError, InvalidArgument, Unavailable
from backline.engine.values.signature import Signature
from backline.fleet.rpc_transport import RpcTransport
from backline.system.busy_poll import BusyPoll

#: How many seconds the servers may take to describe a model.
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Description:
    """A model as its servers describe it. `max_batch_size` is None if they do not say."""

    signature: Signature
    max_batch_size: int | None
    decoupled: bool


def open_remote(remote: RemoteModel, *, idempotent: bool, poll: BusyPoll | None = None) -> BalancedTransport:
    """Returns a transport to the servers of a model, not opened yet. Raises InvalidArgument for invalid URLs.

    `poll` is the busy poll of the event loop, which learns from the transport when responses arrive.
    """
    addresses = Address.parse_all(remote.urls)
    if any(address.protocol == "inproc" for address in addresses):
        raise InvalidArgument(f"'{remote.urls}' names a repository, not servers: load it as a repository")
    options = ClientOptions(
        ca=remote.ca, api_key=remote.api_key, max_connections=remote.max_in_flight, idempotent=idempotent
    )
    loop_poll = poll or BusyPoll()

    def make(address: Address, options: ClientOptions) -> Transport:
        if address.protocol == "grpc":
            return RpcTransport(address, options, loop_poll)
        return open_transport(address, options)

    return BalancedTransport(remote.urls, addresses, options, make)


def describe(remote: RemoteModel) -> Description:
    """Asks the servers, on an event loop of this thread. Raises BacklineError if none of them answers."""
    return asyncio.run(_describe(remote))


async def _describe(remote: RemoteModel) -> Description:
    transport = open_remote(remote, idempotent=True)
    await transport.open()
    try:
        found = await transport.model_metadata(remote.model, remote.version, _TIMEOUT)
        config: dict[str, Any] = {}
        try:
            config = await transport.model_config(remote.model, remote.version, _TIMEOUT)
        except Unavailable:
            raise
        except BacklineError:
            pass  # the configuration is Triton's extension, which other servers lack
    finally:
        await transport.close()
    limit = config.get("max_batch_size", 0) if config else None
    policy = config.get("model_transaction_policy") or {}
    return Description(
        Signature(found.inputs, found.outputs),
        limit if isinstance(limit, int) else None,
        bool(policy.get("decoupled", False)),
    )
