"""The transport over gRPC, with the Open Inference Protocol. Needs the extra `grpc`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator
from functools import cache
from pathlib import Path
from typing import Any

from backline_client.client.address import Address
from backline_client.client.credentials import find_credential
from backline_client.client.errors import (
    ConnectionFailed,
    ConnectionLost,
    DeadlineExceeded,
    from_grpc_code,
    pushback_of,
)
from backline_client.client.grpc_requests import SERVICE, GrpcRequests
from backline_client.client.handshake import no_tls, unanswered, unverified
from backline_client.client.options import ClientOptions
from backline_client.values.errors import BacklineError, InvalidArgument, Unavailable


@cache
def _first_process() -> int:
    """Returns the id of the process that first used grpcio."""
    return os.getpid()


@cache
def _grpc() -> Any:
    """Returns the module grpc. Raises InvalidArgument if grpcio is not installed."""
    try:
        import grpc
        import grpc.aio
    except ImportError as error:
        raise InvalidArgument(
            f"grpc:// URLs need grpcio: pip install 'backline[grpc]' ({error}). http:// works without it"
        ) from None
    return grpc


class GrpcTransport(GrpcRequests):
    """Reaches a server over a channel of grpcio's asyncio API, without limits on message sizes. The channel
    reconnects after it has lost its connection.
    """

    def __init__(self, address: Address, options: ClientOptions) -> None:
        grpc = _grpc()
        # grpcio's threads do not survive a fork, so a call would wait forever.
        if _first_process() != os.getpid():
            raise Unavailable(
                "grpcio was used before a fork and does not work in the child process."
                " Start processes with multiprocessing's 'spawn', or use http://"
            )
        super().__init__(address, options)
        self._connect_timeout = options.connect_timeout
        self._connected = False
        self._credential = find_credential(address, options)
        fields = self._credential.fields.items()
        self._metadata = tuple((name.lower(), value) for name, value in fields) or None
        target = f"unix:{address.path}" if address.unix else address.authority
        arguments: list[tuple[str, str | int]] = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.use_local_subchannel_pool", 1),  # clients in one process must not share a connection
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
        ]
        if address.unix:
            arguments.append(("grpc.default_authority", "localhost"))
        if address.tls:
            if address.looked_up:
                arguments.append(("grpc.ssl_target_name_override", address.looked_up))
            self._channel = grpc.aio.secure_channel(target, _credentials(grpc, options), arguments)
        else:
            self._channel = grpc.aio.insecure_channel(target, arguments)
        self._calls: dict[str, Any] = {}

    async def close(self) -> None:
        await super().close()
        await self._channel.close()

    async def exchange(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> bytes:
        grpc = _grpc()
        call = self._calls.get(method)
        if call is None:
            call = self._calls[method] = self._channel.unary_unary(f"{SERVICE}{method}")
        try:
            if not self._connected:  # otherwise a call to an unreachable host would use up its whole timeout
                self._connected = await self._connect(timeout)
            response: bytes = await call(
                request,
                timeout=timeout,
                metadata=(*(self._metadata or ()), *metadata) if metadata else self._metadata,
            )
            return response
        except grpc.aio.AioRpcError as error:
            raise self._failure(method, error, timeout) from None
        except grpc.aio.UsageError as error:
            raise ConnectionFailed(f"the client of {self._url} is closed: {error}") from None

    async def exchange_stream(
        self, method: str, request: bytes, timeout: float, metadata: tuple[tuple[str, str], ...] = ()
    ) -> AsyncGenerator[bytes, None]:
        grpc = _grpc()
        open_stream = self._channel.stream_stream(f"{SERVICE}{method}")
        streaming = None
        try:
            if not self._connected:
                self._connected = await self._connect(timeout)
            streaming = open_stream(metadata=(*(self._metadata or ()), *metadata))
            await streaming.write(request)
            await streaming.done_writing()
            while True:
                try:
                    async with asyncio.timeout(timeout):
                        answer = await streaming.read()
                except TimeoutError:
                    raise DeadlineExceeded(f"no response from {self._url} within {timeout:.3g} s") from None
                if answer is grpc.aio.EOF:
                    if await streaming.code() is not grpc.StatusCode.OK:
                        code, details = (await streaming.code()).value[0], await streaming.details()
                        raise self._credential.explain(
                            from_grpc_code(
                                code,
                                details or f"{self._url} ended the stream with gRPC status {code}",
                                pushback_of(await streaming.trailing_metadata()),
                            ),
                            self._url,
                        )
                    return
                yield answer
        except grpc.aio.AioRpcError as error:
            raise self._failure(method, error, timeout) from None
        except grpc.aio.UsageError as error:
            raise ConnectionFailed(f"the client of {self._url} is closed: {error}") from None
        finally:
            if streaming is not None:
                streaming.cancel()

    async def _connect(self, timeout: float) -> bool:
        """Waits for the channel to connect, and returns whether it did. If it did not, the error of the call
        that follows says why. Raises ConnectionFailed after `timeout` or the client's connect timeout,
        whichever is shorter.
        """
        ready = _grpc().ChannelConnectivity.READY
        waiting = {_grpc().ChannelConnectivity.IDLE, _grpc().ChannelConnectivity.CONNECTING}
        limit = min(timeout, self._connect_timeout)
        try:
            async with asyncio.timeout(limit):
                state = self._channel.get_state(try_to_connect=True)
                while state in waiting:
                    await self._channel.wait_for_state_change(state)
                    state = self._channel.get_state(try_to_connect=True)
        except TimeoutError:
            raise ConnectionFailed(
                f"{self._url} did not accept a connection within {limit:.3g} s."
                " Is the host reachable, and is this a gRPC port?"
            ) from None
        return bool(state is ready)

    def _failure(self, method: str, error: Any, timeout: float) -> BacklineError:
        code, details = error.code().value[0], error.details() or ""
        if code == 14 and self._channel.get_state() is not _grpc().ChannelConnectivity.READY:
            # A call on an established connection may have reached the server before the connection broke.
            sent, self._connected = self._connected, False
            failed = self._unreachable(details)
            return ConnectionLost(failed.message) if sent else failed
        if code == 4:
            return DeadlineExceeded(
                f"no response from {self._url} within {timeout:.3g} s" + (f" ({details})" if details else "")
            )
        failure = from_grpc_code(
            code,
            details or f"{self._url} answered {method} with gRPC status {error.code().name}",
            pushback_of(error.trailing_metadata()),
        )
        return self._credential.explain(failure, self._url)

    def _unreachable(self, details: str) -> ConnectionFailed:
        """Returns the error for a failed connection; grpcio reports the cause only in the text `details`."""
        _, found, reason = details.partition("CERTIFICATE_VERIFY_FAILED: ")
        if found:
            return unverified(self._address, reason.removesuffix(": OK"))
        if self._address.tls and ("Handshake read failed" in details or "WRONG_VERSION" in details):
            return no_tls(self._address)
        told = f"cannot reach {self._url}: {details}."
        dropped = "Socket closed" in details or "reset by peer" in details
        if dropped and (advice := unanswered(self._address, self._options)):
            return ConnectionFailed(told + advice)
        return ConnectionFailed(
            f"{told} Start a server (backline serve REPO), or check the host and port. The port must speak"
            " gRPC"
        )


def _credentials(grpc: Any, options: ClientOptions) -> Any:
    if not options.verify:
        raise InvalidArgument(
            "gRPC cannot skip certificate verification (verify=False): pass ca='ca.pem', or use https://"
        )
    files = (options.ca, options.key, options.certificate)
    try:
        authority, key, certificate = (None if path is None else Path(path).read_bytes() for path in files)
    except OSError as error:
        raise InvalidArgument(f"cannot read the certificates: {error}") from None
    return grpc.ssl_channel_credentials(authority, key, certificate)
