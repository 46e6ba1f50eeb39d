"""The transport to several equivalent servers. Each call goes to one server and, if that server fails, to
another.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, TypeVar, cast

from backline_client.balance.balancer import Balancer, Endpoint, Verdict
from backline_client.balance.open_sequences import OpenSequences
from backline_client.client.address import Address, resolve
from backline_client.client.balanced_call import BalancedCall, may_try_again, verdict_of
from backline_client.client.control import ModelControl
from backline_client.client.errors import ConnectionFailed
from backline_client.client.options import ClientOptions
from backline_client.client.records import ModelIndex, ModelMetadata, ServerMetadata
from backline_client.client.transport import InferCall, OnOutcome, TaskSending, Transport
from backline_client.values.control import Attempt, Change, LabelMove, Overrides, Page
from backline_client.values.errors import BacklineError, Unavailable, Unsupported
from backline_client.values.messages import InferResponse

log = logging.getLogger("backline_client.client")

T = TypeVar("T")

#: Seconds between checks of the servers while requests are in flight or a server is ejected.
_WATCH = 0.1
#: Maximum duration of a probe, in seconds.
_PROBE_TIMEOUT = 0.5
#: Seconds between two look-ups of the addresses of a host name.
_RESOLVE = 5.0
#: Seconds between two queries to Ray for the replicas of a deployment. An idle client sends queries too,
#: because otherwise all replicas that it knows could have been replaced by the time of its next request.
_LOOK_AGAIN = 1.0
#: The maximum number of open sequences whose server is remembered.
_MAX_SEQUENCES = 65536


class BalancedTransport(Transport):
    """Spreads calls over the servers of `addresses`, which must have the same models.

    All requests of a sequence go to one server. Without `options.idempotent`, a request is sent again only if
    its first attempt has certainly not run. `make` returns the transport to one server.
    """

    def __init__(
        self,
        url: str,
        addresses: Sequence[Address],
        options: ClientOptions,
        make: Callable[[Address, ClientOptions], Transport],
        sequences: OpenSequences[str] | None = None,
    ) -> None:
        self.url = url
        self._given = tuple(addresses)
        # A failed request goes to another server immediately, instead of to the same server a little later.
        self._options = replace(options, retries=0)
        self._make = make
        #: The servers found at each address by the last successful look-up of that address.
        self._found: dict[Address, tuple[Address, ...]] = {}
        self._addresses: dict[str, Address] = {}
        self._transports: dict[str, Transport] = {}
        self.balancer = Balancer(())
        #: Servers to which the address no longer resolves, but which still have requests in flight.
        self._leaving: list[Endpoint] = []
        #: The calls in flight.
        self.calls: set[BalancedCall[Any]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._probes: set[asyncio.Task[None]] = set()
        #: The URL of the server of each open sequence.
        self._sequences = OpenSequences[str](_MAX_SEQUENCES) if sequences is None else sequences
        #: Whether the last look-up failed.
        self._look_up_failed = False
        self._resolve_at = 0.0
        #: Whether `close` was called. No call is sent after that, not even to another server.
        self.closed = False
        self._control = _OneServerOnly(self)

    async def open(self) -> None:
        """Looks up the servers. If this finds no server at all, raises the error of the last look-up."""
        error = await self._look_up()
        if error is not None and not self.balancer.endpoints:
            raise error

    async def close(self) -> None:
        self.closed = True
        for task in (self._watching, self._looking, *self._probes):
            if task is not None:
                task.cancel()
        transports, self._transports = self._transports, {}
        for transport in transports.values():
            await transport.close()

    @property
    def control(self) -> ModelControl:
        return self._control

    def transport_of(self, endpoint: Endpoint) -> Transport:
        """Returns the transport to a server, made on first use."""
        transport = self._transports.get(endpoint.url)
        if transport is None:
            transport = self._make(self._addresses[endpoint.url], self._options)
            self._transports[endpoint.url] = transport
        return transport

    def no_server(self) -> BacklineError:
        """Returns the error for a call that cannot be sent to any server."""
        if self.closed:
            return ConnectionFailed(f"the client of {self.url} is closed; nothing was sent")
        return Unavailable(f"no server of {self.url} is known at the moment; try again later")

    # inference

    async def infer(self, call: InferCall) -> InferResponse:
        answered: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        return await _awaited(self.start_infer(call, call.timeout, partial(_settle, answered)), answered)

    def start_infer(
        self, call: InferCall, timeout: float, on_outcome: OnOutcome[InferResponse]
    ) -> BalancedCall[InferResponse]:
        """Sends a call; see Transport.start_infer.

        Raises Unavailable if there is no server to send the call to.
        """
        key, pinned, seeks = self._sequence(call)
        # BalancedCall[InferResponse](...) would do the same, but calling a typing alias takes longer.
        started: BalancedCall[InferResponse] = BalancedCall(
            self,
            lambda transport, left, ended: transport.start_infer(call, left, ended),
            timeout,
            on_outcome,
            idempotent=self._options.idempotent and key is None,
            pinned=pinned,
            seeks=seeks,
            requests=call.requests,
            on_attempt=None if key is None else partial(self._keep_sequence, call, key),
        )
        started.start()
        return started

    def prepare(self, call: InferCall) -> Callable[[], Awaitable[None]]:
        prepared: dict[Transport, Callable[[], Awaitable[None]]] = {}

        async def attempt(transport: Transport, left: float) -> None:
            send = prepared.get(transport)
            if send is None:
                send = prepared[transport] = transport.prepare(call)
            await send()

        async def send() -> None:
            await self._run(attempt, call.timeout, idempotent=self._options.idempotent)

        return send

    async def stream(self, call: InferCall) -> AsyncGenerator[InferResponse, None]:
        """Yields responses; see Transport.stream.

        A stream moves to another server only before its first response.
        """
        key, pinned, seeks = self._sequence(call)
        idempotent = self._options.idempotent and key is None
        tried: list[Endpoint] = []
        self.balancer.arrived()
        error = self.no_server()
        while (
            not self.closed and (endpoint := pinned or self.balancer.choose(monotonic(), tried)) is not None
        ):
            tried.append(endpoint)
            if key is not None:
                self._keep_sequence(call, key, endpoint)
            attempt = self.balancer.started(endpoint, monotonic(), timed=False)
            self.watch()
            verdict, begun = Verdict.ABANDONED, False
            try:
                async with aclosing(self.transport_of(endpoint).stream(call)) as responses:
                    async for response in responses:
                        begun = True
                        yield response
                verdict = Verdict.ANSWERED
                return
            except BacklineError as failed:
                error, verdict = failed, verdict_of(failed)
            finally:
                self.balancer.finished(attempt, verdict, monotonic(), busy_for=error.retry_after)
            again = may_try_again(error, idempotent=idempotent, seeks=seeks)
            if begun or pinned is not None or not again or not self.balancer.take_retry():
                raise error
        raise error

    def _sequence(self, call: InferCall) -> tuple[object, Endpoint | None, bool]:
        """Returns the key of the sequence that a call belongs to, or None; the server that has the sequence's
        state, if it is known; and whether the call seeks this server.

        Another client, or this program before a restart, may have begun the sequence.
        """
        parameters = call.parameters or {}
        number = parameters.get("sequence_id")
        if number in (None, 0, ""):
            return None, None, False
        key = call.model, number
        if parameters.get("sequence_start"):
            return key, None, False
        _, url = self._sequences.get(key) or ("", None)
        endpoint = next((one for one in self.balancer.endpoints if one.url == url), None)
        return key, endpoint, endpoint is None

    def _keep_sequence(self, call: InferCall, key: object, endpoint: Endpoint) -> None:
        """Remembers the server for the later requests of a sequence, or forgets it when the last request is
        sent.

        The first request of a sequence may go to another server as long as it has certainly not run, because
        no server has any state of the sequence then.
        """
        if (call.parameters or {}).get("sequence_end"):
            self._sequences.drop(key)
        else:
            self._sequences.keep(key, call.caller, endpoint.url)

    # health, metadata, configuration and statistics, from any one server

    async def server_live(self, timeout: float) -> bool:
        return await self._any(lambda transport, left: transport.server_live(left), timeout)

    async def server_ready(self, timeout: float) -> bool:
        """Returns whether any of the servers is ready. Raises an error if none of them responds."""
        answers = await asyncio.gather(
            *(self.transport_of(endpoint).server_ready(timeout) for endpoint in self.balancer.endpoints),
            return_exceptions=True,
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors and len(errors) == len(answers):
            raise errors[0]
        return True in answers

    async def server_metadata(self, timeout: float) -> ServerMetadata:
        return await self._any(lambda transport, left: transport.server_metadata(left), timeout)

    async def model_ready(self, model: str, version: str, timeout: float) -> bool:
        return await self._any(lambda transport, left: transport.model_ready(model, version, left), timeout)

    async def model_metadata(self, model: str, version: str, timeout: float) -> ModelMetadata:
        return await self._any(
            lambda transport, left: transport.model_metadata(model, version, left), timeout
        )

    async def model_config(
        self, model: str, version: str, timeout: float, *, explained: bool = False
    ) -> dict[str, Any]:
        return await self._any(
            lambda transport, left: transport.model_config(model, version, left, explained=explained), timeout
        )

    async def statistics(self, model: str, version: str, timeout: float) -> list[dict[str, Any]]:
        return await self._any(lambda transport, left: transport.statistics(model, version, left), timeout)

    async def repository_index(self, timeout: float) -> list[ModelIndex]:
        return await self._any(lambda transport, left: transport.repository_index(left), timeout)

    async def _any(self, ask: Callable[[Transport, float], Coroutine[Any, Any, T]], timeout: float) -> T:
        return await self._run(ask, timeout, idempotent=True)

    async def _run(
        self, send: Callable[[Transport, float], Coroutine[Any, Any, T]], timeout: float, *, idempotent: bool
    ) -> T:
        answered: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        call = BalancedCall[T](
            self,
            lambda transport, left, ended: TaskSending(send(transport, left), ended),
            timeout,
            partial(_settle, answered),
            idempotent=idempotent,
        )
        call.start()
        return await _awaited(call, answered)

    # watching the servers

    def watch(self) -> None:
        """Starts to watch the servers, unless they are already being watched."""
        if self._watching is None or self._watching.done():
            self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            now = monotonic()
            for endpoint in self.balancer.to_probe(now):
                task = asyncio.create_task(self._probe(endpoint))
                self._probes.add(task)
                task.add_done_callback(self._probes.discard)
            if (
                self._resolve_at
                and now >= self._resolve_at
                and (self._looking is None or self._looking.done())
            ):
                # A name server that does not respond may delay a look-up. Probes continue in the meantime.
                self._looking = asyncio.create_task(self._look_up_again())
            if self.balancer.quiet and not self.calls and not any(one.by_ray for one in self._given):
                return

    async def _probe(self, endpoint: Endpoint) -> None:
        """Checks whether a server is alive. If not, sends the idempotent calls in flight there to other
        servers.
        """
        was_ejected, why = endpoint.ejected, "it reports that it is not live"
        if endpoint not in self.balancer.endpoints:
            return  # the address no longer resolves to this server
        try:
            alive = await self.transport_of(endpoint).probe(_PROBE_TIMEOUT)
        except BacklineError as error:
            alive, why = False, error.message
        self.balancer.probed(endpoint, monotonic(), alive=alive)
        if alive and was_ejected:
            log.info("the server %s is alive and gets requests again", endpoint.url)
        elif not alive and not was_ejected:
            log.warning("the server %s gets no requests until it responds again: %s", endpoint.url, why)
        if not alive:
            for call in tuple(self.calls):
                call.left_by(endpoint)

    async def _look_up_again(self) -> None:
        error = await self._look_up()
        if error is not None and not self._look_up_failed:
            log.warning("%s. The known servers still get requests", error.message)
        self._look_up_failed = error is not None

    async def _look_up(self) -> BacklineError | None:
        """Looks up the servers at all addresses. Returns the last error, or None. If a look-up fails, the
        servers that were found at that address before are kept.
        """
        error: BacklineError | None = None
        for address in self._given:
            try:
                self._found[address] = await resolve(address)
            except BacklineError as failed:
                error = failed
        again = [_LOOK_AGAIN if one.by_ray else _RESOLVE for one in self._given if one.changes]
        self._resolve_at = monotonic() + min(again) if again else 0.0
        found = {one.url: one for address in self._given for one in self._found.get(address, ())}
        self._addresses |= found
        _, removed = self.balancer.update(found)
        self._leaving += removed
        ended = [endpoint for endpoint in self._leaving if not endpoint.in_flight or endpoint.url in found]
        self._leaving = [endpoint for endpoint in self._leaving if endpoint not in ended]
        for endpoint in ended:
            if endpoint.url not in found:
                del self._addresses[endpoint.url]
                transport = self._transports.pop(endpoint.url, None)
                if transport is not None:
                    await transport.close()
        return error


def _settle(answered: asyncio.Future[T], response: T | None, error: BaseException | None) -> None:
    if answered.done():
        return
    if error is not None:
        answered.set_exception(error)
    else:
        answered.set_result(cast(T, response))


async def _awaited(call: BalancedCall[Any], answered: asyncio.Future[T]) -> T:
    """Returns the response to a call that was started. If cancelled, abandons the attempts of the call."""
    try:
        return await answered
    finally:
        call.abandon()


class _OneServerOnly(ModelControl):
    """Lists the models and labels of any one server. Refuses all other operations, because they would reach
    only one server.
    """

    def __init__(self, group: BalancedTransport) -> None:
        self._group = group

    def _refusal(self) -> BacklineError:
        return Unsupported(
            f"{self._group.url} names several servers, and this operation would reach only one of them:"
            " connect to each server separately"
        )

    async def models(self, timeout: float) -> list[ModelIndex]:
        return await self._group._any(lambda transport, left: transport.control.models(left), timeout)

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        return await self._group._any(lambda transport, left: transport.control.labels(model, left), timeout)

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        raise self._refusal()

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        raise self._refusal()

    async def move_label(self, move: LabelMove, timeout: float) -> Change:
        raise self._refusal()

    async def history(self, model: str, limit: int, cursor: str, timeout: float) -> Page[Change]:
        raise self._refusal()

    async def audit(self, limit: int, after: float, cursor: str, timeout: float) -> Page[Change | Attempt]:
        raise self._refusal()

    async def refresh(self, timeout: float) -> None:
        raise self._refusal()
