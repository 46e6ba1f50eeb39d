"""Client and server that disagree about TLS: the error says so, and what to do."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography import x509

from backline_client.client import connect
from backline_client.client.address import Address
from backline_client.client.errors import ConnectionFailed
from backline_client.client.handshake import unanswered, unverified
from backline_client.client.http_stream import stream_events
from backline_client.client.options import ClientOptions
from support import models
from support.authority import Authority, Issued, server_options
from support.server import ServerProcess, serve

PORTS = {"http": "http_port", "grpc": "grpc_port"}


@dataclass(frozen=True)
class Secured:
    """A server that requires client certificates, and the files that its clients need."""

    server: ServerProcess
    authority: Authority
    own: Issued
    stranger: Issued
    files: dict[str, str]
    socket: Path

    def url(self, scheme: str) -> str:
        return f"{scheme}://127.0.0.1:{getattr(self.server, PORTS[scheme.removesuffix('s')])}"

    @property
    def plain(self) -> int:
        """The port without TLS."""
        return self.server.metrics_port


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    models.add1(folder / "models")
    authority = Authority(folder / "authority")
    client = authority.issue("client")
    stranger = Authority(folder / "other", "other").issue("stranger")
    own = authority.issue("server")
    options = (
        *server_options(own),
        "--ssl-client-ca",
        str(authority.certificate),
        "--metrics-plain",
        "--unix-socket",
        str(folder / "socket"),
    )
    with serve(folder / "models", folder / "log", *options, ready=False) as server:
        server.wait_started()
        files = {
            "ca": str(authority.certificate),
            "certificate": str(client.certificate),
            "key": str(client.key),
        }
        yield Secured(server, authority, own, stranger, files, folder / "socket")


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_the_certificate_of_servers_found_by_name_has_that_name(tmp_path: Path, scheme: str) -> None:
    models.add1(tmp_path / "models")
    authority = Authority(tmp_path / "authority")
    named = authority.issue("server", x509.DNSName("localhost"))  # and not 127.0.0.1, which is looked up
    with serve(tmp_path / "models", tmp_path / "log", *server_options(named), ready=False) as server:
        server.wait_started()
        port = getattr(server, PORTS[scheme.removesuffix("s")])
        ca = str(authority.certificate)
        with connect(f"dns+{scheme}://localhost:{port}", ca=ca, timeout=20) as client:
            assert client["add1"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2


def failure(url: str, **options: Any) -> str:
    with connect(url, **options) as client, pytest.raises(ConnectionFailed) as caught:
        client.live()
    assert url in str(caught.value)
    return str(caught.value)


def test_a_client_may_trust_the_certificate_of_the_server_itself(secured: Secured) -> None:
    # As in the commands that a server prints at its start.
    with connect(secured.url("https"), **{**secured.files, "ca": str(secured.own.certificate)}) as client:
        assert client.live()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_with_all_files_is_served(secured: Secured, scheme: str) -> None:
    with connect(secured.url(scheme), **secured.files) as client:
        assert client.live()


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_missing_client_certificate_is_explained(secured: Secured, scheme: str) -> None:
    told = failure(secured.url(scheme), ca=secured.files["ca"])
    assert "may require a client certificate" in told
    assert "--certificate and --key" in told


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_client_certificate_of_another_authority_is_explained(secured: Secured, scheme: str) -> None:
    stranger = secured.stranger
    told = failure(
        secured.url(scheme),
        ca=secured.files["ca"],
        certificate=str(stranger.certificate),
        key=str(stranger.key),
    )
    assert f"may not accept the client certificate '{stranger.certificate}'" in told


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_port_that_speaks_tls_is_explained(secured: Secured, scheme: str) -> None:
    assert f"If that port speaks TLS, use {secured.url(scheme + 's')}" in failure(secured.url(scheme))


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_a_port_that_speaks_no_tls_is_explained(secured: Secured, scheme: str) -> None:
    told = failure(f"{scheme}://127.0.0.1:{secured.plain}", **secured.files)
    assert f"does not speak TLS on that port. Use {scheme[:-1]}://127.0.0.1:{secured.plain}" in told


@pytest.mark.parametrize("scheme", ["https", "grpcs"])
def test_an_unknown_authority_is_explained(secured: Secured, scheme: str) -> None:
    told = failure(secured.url(scheme))
    assert "cannot be verified: self" in told
    assert "Pass ca='ca.pem' (--ca ca.pem on the command line)" in told


def test_a_certificate_that_no_authority_could_help_is_explained() -> None:
    address = Address.parse("https://elsewhere.example")
    assert "Use a name or address that the certificate contains" in str(unverified(address, "mismatch", 62))
    assert "Renew the certificate" in str(unverified(address, "certificate has expired", 10))


def test_a_stream_that_is_closed_unanswered_has_the_same_advice(answering: Callable[..., str]) -> None:
    address = Address.parse(answering(b""))

    async def ask() -> None:
        parts = [b"GET / HTTP/1.1\r\n\r\n"]
        advice = unanswered(address, ClientOptions())
        async for _ in stream_events(address, None, parts, advice=advice, connect_timeout=9, timeout=9):
            pass

    with pytest.raises(
        ConnectionFailed, match=r"before it answered; the request may have run\. If that port"
    ):
        asyncio.run(ask())


def test_a_port_that_answers_a_handshake_with_something_else_is_explained(
    answering: Callable[..., str],
) -> None:
    url = answering(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n").replace("http:", "https:")
    assert "does not speak TLS on that port" in failure(url)


@pytest.mark.parametrize("scheme", ["unix:", "unix://", "grpc+unix:", "grpc+unix://"])
def test_the_unix_socket_needs_no_tls(secured: Secured, scheme: str) -> None:
    with connect(f"{scheme}{secured.socket}") as client:
        assert client["add1"](INPUT0=np.zeros((1, 16), np.float32)).OUTPUT0.shape == (1, 16)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "backline", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_command_line_reaches_the_unix_socket(secured: Secured) -> None:
    done = run("models", "list", "--url", f"unix://{secured.socket}")
    assert done.returncode == 0, done.stderr
    assert "add1" in done.stdout


def test_the_command_line_says_how_to_trust_a_server(secured: Secured) -> None:
    done = run("models", "list", "--url", secured.url("https"))
    assert done.returncode == 1
    assert "--ca ca.pem on the command line" in done.stderr
    assert "Traceback" not in done.stderr
