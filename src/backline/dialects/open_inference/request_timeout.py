"""How long the client of an HTTP request waits for its answer, where it says so."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from backline.engine.errors import DeadlineExceeded, InvalidArgument
from backline.wire.grpc.timeout import InvalidTimeout, parse_timeout

#: What gRPC has, and what gateways between HTTP and gRPC pass on: up to eight digits and a unit, as "250m" for milliseconds.
GRPC = b"grpc-timeout"
#: What Envoy adds to the requests that it forwards: the milliseconds that it will wait itself.
ENVOY = b"x-envoy-expected-rq-timeout-ms"


def deadline_of(headers: Mapping[bytes, bytes]) -> float | None:
    """The moment of time.monotonic() up to which the client of a request that is complete now waits; None for as long as it takes.

    Raises InvalidArgument for a field that is no time, DeadlineExceeded for a time that is over.
    """
    given = [_seconds(name, headers[name]) for name in (GRPC, ENVOY) if name in headers]
    if not given:
        return None
    seconds = min(given)
    if seconds <= 0:
        raise DeadlineExceeded("the deadline was over when the request came")
    return monotonic() + seconds


def _seconds(name: bytes, value: bytes) -> float:
    if name == GRPC:
        try:
            return parse_timeout(value)
        except InvalidTimeout as error:
            raise InvalidArgument(str(error)) from None
    if not value.isdigit() or len(value) > 15:
        raise InvalidArgument(
            f"{name.decode()} {value[:40].decode('latin-1')!r} is not a number of milliseconds"
        )
    return int(value) / 1000
