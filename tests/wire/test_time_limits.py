"""How often the time limits of an HTTP/1.1 connection are checked, and when they end it."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from socket import socket
from time import monotonic
from types import SimpleNamespace
from typing import Any

import pytest

from backline.wire.http1.time_limits import LONGEST_REST, TimeLimits
from backline.wire.limits import Limits
from wire.conftest import WireServer, read_answer


class Watched:
    """What the time limits see of a connection."""

    def __init__(self, limits: Limits, *, answers: int = 0) -> None:
        self.wire = SimpleNamespace(limits=limits)
        self.pipeline = SimpleNamespace(answers=answers, sent_chunks=0)
        self.receiver = SimpleNamespace(in_body=False, waits=False, target=b"", progress=0)
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: 0)
        self.lingering = self.busy = False
        self.rests_until = 0.0
        self.ended = False

    def close(self) -> None:
        self.ended = True


def call(client: socket) -> None:
    client.sendall(b"GET /echo HTTP/1.1\r\nHost: a\r\n\r\n")
    read_answer(client)


def checks_of(connection: Any, seconds: int) -> list[int]:
    """The seconds at which an idle connection is checked if there is a sweep each second."""
    limits = TimeLimits()
    checks = []
    for now in range(seconds):
        if connection.rests_until <= now and not connection.ended:
            limits.check(connection, now)
            checks.append(now)
    return checks


def test_an_idle_connection_is_checked_rarely_and_closed_in_time() -> None:
    connection = Watched(Limits(idle_timeout=120), answers=1)

    checks = checks_of(connection, 200)

    assert checks[:2] == [0, 1]
    assert len(checks) < 120 / LONGEST_REST + 3
    assert checks[-1] == 120
    assert connection.ended


def test_a_new_connection_may_wait_for_a_short_time_only() -> None:
    connection = Watched(Limits(header_timeout=8))

    checks = checks_of(connection, 20)

    assert checks == list(range(9))
    assert connection.ended


@pytest.mark.parametrize(
    ("part", "values"),
    [("receiver", {"in_body": True}), ("receiver", {"target": b"/v2"})],
    ids=["body", "head"],
)
def test_a_request_in_progress_is_checked_at_each_sweep(part: str, values: dict[str, Any]) -> None:
    connection = Watched(Limits(), answers=1)
    vars(getattr(connection, part)).update(values)

    assert checks_of(connection, 5) == [0, 1, 2, 3, 4]


def test_a_request_that_begins_during_a_rest_has_its_time_limit_from_the_next_check() -> None:
    connection: Any = Watched(Limits(idle_timeout=120, header_timeout=3), answers=1)
    limits = TimeLimits()
    for now in (0, 1):
        limits.check(connection, now)
    refused = []
    connection.refuse = refused.append
    connection.receiver.target = b"/v2"

    for now in (11, 12, 13):
        limits.check(connection, now)
    assert not refused
    limits.check(connection, 14)

    assert [one.status for one in refused] == [408]


def test_part_of_a_request_ends_the_rest_of_an_idle_connection(start: Callable[..., WireServer]) -> None:
    server = start()
    with server.connect() as client:
        call(client)
        (connection,) = server.wire.connections
        connection.rests_until = inf

        client.sendall(b"GET /slow HTTP/1.1\r\nHo")

        server.until(lambda: connection.rests_until == 0)


def test_sweeps_skip_resting_connections_until_one_is_due(start: Callable[..., WireServer]) -> None:
    server = start(idle_timeout=1.6, header_timeout=1.6)
    wire = server.wire
    with server.connect() as client:
        call(client)
        (connection,) = wire.connections
        server.until(lambda: wire.next_check > 0 and wire.next_check == connection.rests_until)

        assert client.recv(1) == b"", "an idle connection is closed although sweeps skip it"


def test_a_request_that_stalls_after_a_rest_is_refused(start: Callable[..., WireServer]) -> None:
    server = start(idle_timeout=3600, header_timeout=0.4)
    wire = server.wire
    with server.connect() as client:
        call(client)
        server.until(lambda: wire.next_check > monotonic() + 1)

        client.sendall(b"GET /slow HTTP/1.1\r\nHo")

        assert client.recv(12) == b"HTTP/1.1 408"


def test_a_new_connection_is_checked_while_others_rest(start: Callable[..., WireServer]) -> None:
    server = start(idle_timeout=3600, header_timeout=0.4)
    wire = server.wire
    with server.connect() as client, server.connect() as silent:
        call(client)
        assert silent.recv(1) == b""
        server.until(lambda: wire.next_check > monotonic() + 1)
        with server.connect() as late:
            assert late.recv(1) == b""
