"""Asks other servers to describe a model that they serve, and notices when their description changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from backline.engine.route import route_fields
from backline.plugins.fleet.backend import RemoteModel
from backline.plugins.fleet.rpc_transport import RpcTransport
from backline_client.balance.open_sequences import OpenSequences
from backline_client.client.address import Address
from backline_client.client.balanced_transport import BalancedTransport
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.client.transport import Transport
from backline_client.system.busy_poll import BusyPoll
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable
from backline_client.values.signature import Signature

log = logging.getLogger("backline.plugins.fleet")

#: Maximum time, in seconds, for each of the two requests that ask for a model's description.
_TIMEOUT = 10.0
#: The minimum time, in seconds, between two checks of a model's description.
_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Description:
    """A model as its servers describe it. `max_batch_size` is None if the servers do not state it.

    `joins` says whether the servers run requests of several callers as one batch. If they do, the results of
    a request do not depend on the other requests in its batch. `idle_seconds` is the time after which the
    servers end an idle sequence; 0 if that is unknown, and None if the model has no sequences.
    """

    signature: Signature
    max_batch_size: int | None
    decoupled: bool
    joins: bool = False
    idle_seconds: float | None = 0.0


def open_remote(
    remote: RemoteModel,
    *,
    idempotent: bool,
    poll: BusyPoll | None = None,
    id: bytes = b"",
    sequences: OpenSequences[str] | None = None,
) -> BalancedTransport:
    """Returns a transport, not yet opened, to the servers of a model. Raises InvalidArgument for invalid
    URLs.

    `poll` is the busy poll of the event loop, to which the transport reports that responses have arrived.
    `id` is the id of the remote model, by which `RemoteCheck` recognises requests that come back. `sequences`
    records the server of each open sequence.
    """
    addresses = Address.parse_all(remote.urls)
    if any(address.protocol == "inproc" for address in addresses):
        raise InvalidArgument(f"'{remote.urls}' names a repository, not servers: load it as a repository")
    options = ClientOptions(
        headers=route_fields(id),
        ca=remote.ca,
        api_key=remote.api_key,
        max_connections=remote.max_in_flight,
        idempotent=idempotent,
    )
    loop_poll = poll or BusyPoll()

    def make(address: Address, options: ClientOptions) -> Transport:
        if address.protocol == "grpc":
            return RpcTransport(address, options, loop_poll)
        return HttpTransport(address, options, loop_poll)

    return BalancedTransport(remote.urls, addresses, options, make, sequences)


def describe(remote: RemoteModel) -> Description:
    """Returns the servers' description of a model, using a new event loop on this thread.

    Raises BacklineError if no server describes the model.
    """
    return asyncio.run(_describe(remote))


async def _describe(remote: RemoteModel) -> Description:
    transport = open_remote(remote, idempotent=True)
    await transport.open()
    try:
        return await describe_over(transport, remote)
    finally:
        await transport.close()


async def describe_over(transport: Transport, remote: RemoteModel) -> Description:
    """Returns the servers' description of a model, using an open transport to the servers.

    Raises BacklineError if no server describes the model.
    """
    found = await transport.model_metadata(remote.model, remote.version, _TIMEOUT)
    config: dict[str, Any] = {}
    try:
        config = await transport.model_config(remote.model, remote.version, _TIMEOUT)
    except Unavailable:
        raise
    except BacklineError:
        pass  # the configuration is Triton's extension of the protocol, which not every server has
    limit = config.get("max_batch_size", 0) if config else None
    policy = config.get("model_transaction_policy") or {}
    return Description(
        Signature(found.inputs, found.outputs),
        limit if isinstance(limit, int) else None,
        bool(policy.get("decoupled", False)),
        "dynamic_batching" in config,
        _idle_seconds(config),
    )


def _idle_seconds(config: dict[str, Any]) -> float | None:
    """Returns `idle_seconds` of a Description, from a configuration in Triton's form.

    An ensemble, or a model that those servers forward to yet other servers, may have sequences although its
    configuration does not say so. For such a model, the result is 0.
    """
    sequences = config.get("sequence_batching")
    if not isinstance(sequences, dict):
        known = config and "ensemble_scheduling" not in config and config.get("backend") != "remote"
        return None if known else 0.0
    given = sequences.get("max_sequence_idle_microseconds")
    return float(given) / 1e6 if isinstance(given, (int, float)) else 0.0


class DescriptionWatch:
    """Checks whether the servers of a remote model still describe the model as they did when it was loaded.

    The servers may load other files or another configuration under the same version. Then this server would
    refuse requests that fit the model, and send requests that do not. The watch checks only while requests
    arrive (including requests that this server refuses), so an idle model takes no processor time.
    """

    def __init__(self, name: str, known: Description | None) -> None:
        """`known` is the description with which the model was loaded; None if no server responded then."""
        self._name = name
        self._known = known
        #: Whether the next request must schedule a check, by calling `look_soon`.
        self.resting = False
        self._describe: Callable[[], Awaitable[Description]]
        self._on_changed: Callable[[], None]
        self._task: asyncio.Task[None] | None = None

    def begin(self, describe: Callable[[], Awaitable[Description]], on_changed: Callable[[], None]) -> None:
        """Starts to watch. `describe` asks the servers, and `on_changed` is called after each check that
        finds a different description. Both are called on the event loop that handles the requests.
        """
        self._describe, self._on_changed = describe, on_changed
        self.resting = True

    def look_soon(self) -> None:
        """Schedules a check."""
        self.resting = False
        asyncio.get_running_loop().call_later(_PAUSE, self._begin_look)

    def _begin_look(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        try:
            found = await self._describe()
        except BacklineError as error:
            log.debug("the servers of model '%s' do not describe it: %s", self._name, error)
        else:
            if found != self._known:
                self._on_changed()
        finally:
            self.resting = True
