"""One real server process for the whole session, and connections to it.

BACKLINE_TEST_PORT (and _HOST, _PID, _LOG) select a running server instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from conformance.h1probe import HttpProbe
from conformance.h2probe import Probe
from conformance.running_server import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server under test."""
    with running_server() as server:
        yield server


@pytest.fixture
def raw(server: Server) -> Iterator[Probe]:
    """A connection on which nothing has been sent."""
    probe = Probe(server.host, server.port)
    yield probe
    probe.close()


@pytest.fixture
def h2(raw: Probe) -> Probe:
    """An HTTP/2 connection after the exchange of SETTINGS."""
    raw.handshake()
    return raw


@pytest.fixture
def h1(server: Server) -> Iterator[HttpProbe]:
    """An HTTP/1.1 connection."""
    probe = HttpProbe(server.host, server.port)
    yield probe
    probe.close()


@pytest.fixture
def answer_length(server: Server) -> Callable[[int], None]:
    """Asserts that the body of `GET /` has at least this many bytes, which tests of windows need."""

    def check(minimum: int) -> None:
        probe = Probe(server.host, server.port)
        try:
            length = probe.response_length()
        finally:
            probe.close()
        assert length >= minimum, f"GET / must have a body of at least {minimum} bytes, it has {length}"

    return check


@pytest.fixture(autouse=True)
def no_traceback(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails if the server's output has a traceback: no client may cause one."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("server")
    before = len(server.printed())
    yield
    printed = server.printed()[before:]
    assert "Traceback" not in printed, printed[-3000:]
    assert "exception" not in printed.lower(), printed[-3000:]
