"""An honest client in another process: one inference over HTTP and one over gRPC every 50 ms, and if asked,
one of an image in JSON.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from time import monotonic, sleep

import grpc

from attacks import bytes_on_the_wire as wire
from attacks.target import Target

PERIOD = 0.05
TIMEOUT = 3.0
#: Seconds to wait for the first calls to succeed.
PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Call:
    """One call: its start on the monotonic clock, its duration in seconds, and its error, if it failed."""

    protocol: str
    began: float
    seconds: float
    error: str = ""


@dataclass
class Log:
    calls: list[Call] = field(default_factory=list)

    def between(self, begin: float, end: float) -> Log:
        return Log([call for call in self.calls if begin <= call.began < end])

    @property
    def errors(self) -> list[Call]:
        return [call for call in self.calls if call.error]

    def quantile(self, share: float) -> float:
        """Returns a quantile in milliseconds, or 0 without calls. A failed call counts with its time to
        failure.
        """
        times = sorted(call.seconds for call in self.calls)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else 0.0


class HttpCaller:
    """Inference over HTTP/1.1 on one connection, reopened after an error."""

    protocol = "HTTP"

    def __init__(self, target: Target, request: bytes = b"", timeout: float = TIMEOUT) -> None:
        self._target = target
        self._request = request or wire.add1_request(*target.key_field)
        self._timeout = timeout
        self._socket: socket.socket | None = None

    def __call__(self) -> None:
        if self._socket is None:
            self._socket = self._target.connect(self._timeout)
        try:
            self._socket.sendall(self._request)
            response = http.client.HTTPResponse(self._socket)
            response.begin()
            body = response.read()
            if response.status != 200 or b"OUTPUT0" not in body:
                raise RuntimeError(f"HTTP {response.status} {body[:100]!r}")
        except BaseException:
            self._socket.close()
            self._socket = None
            raise


class GrpcCaller:
    """Inference over gRPC with grpcio."""

    protocol = "gRPC"

    def __init__(self, target: Target, message: bytes = b"", timeout: float = TIMEOUT) -> None:
        address = f"{target.host}:{target.port}"
        if target.certificate is None:
            self._channel = grpc.insecure_channel(address)
        else:
            credentials = grpc.ssl_channel_credentials(target.certificate.read_bytes())
            self._channel = grpc.secure_channel(address, credentials)
        self._metadata = (("authorization", f"Bearer {target.key}"),) if target.key else ()
        self._call = self._channel.unary_unary(
            wire.MODEL_INFER, request_serializer=bytes, response_deserializer=bytes
        )
        self._message = message or wire.infer_message("add1", (1, 16), bytes(64))
        self._timeout = timeout

    def __call__(self) -> None:
        self._call(self._message, timeout=self._timeout, metadata=self._metadata)


def _first_call(caller: HttpCaller | GrpcCaller) -> None:
    """Repeats a call until it succeeds: the server may still have to recover from an earlier attack."""
    until = monotonic() + PATIENCE
    while True:
        try:
            caller()
        except Exception:
            if monotonic() > until:
                raise
            sleep(0.1)
        else:
            return


def run(target: Target, image: bool, control: Connection) -> None:
    """Reports on `control` that it is ready, calls the server until a message arrives on `control`, and then
    sends all calls there.
    """
    callers = [HttpCaller(target), GrpcCaller(target)]
    if image:
        callers.append(HttpCaller(target, wire.image_request(*target.key_field)))
    for caller in callers:
        _first_call(caller)
    control.send("ready")
    calls: list[Call] = []
    due = monotonic()
    while not control.poll():
        due += PERIOD
        for caller in callers:
            began = monotonic()
            error = ""
            try:
                caller()
            except grpc.RpcError as failed:
                error = f"{failed.code().name} {failed.details()}"
            except Exception as failed:
                error = f"{type(failed).__name__} {failed}"
            calls.append(Call(caller.protocol, began, monotonic() - began, error))
        if (pause := due - monotonic()) > 0:
            sleep(pause)
        else:
            due = monotonic()
    control.recv()
    control.send(calls)
