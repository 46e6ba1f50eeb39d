"""SIGHUP: certificates and keys are read again, or the terminal has closed."""

from __future__ import annotations

import http.client
import signal
import ssl
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from backline.cli.keys import command
from support import models
from support.authority import Authority, Issued, server_options
from support.server import ServerProcess, free_ports, serve
from support.terminal import Terminal
from support.waiting import until


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certificates")


@pytest.fixture
def issued(authority: Authority) -> Issued:
    return authority.issue("server")


def presented(port: int) -> str:
    return ssl.get_server_certificate(("127.0.0.1", port))


def create_key(file: Path, name: str) -> str:
    result = CliRunner().invoke(command, ["create", name, "--auth", str(file)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def status(server: ServerProcess, context: ssl.SSLContext, key: str) -> int:
    with closing(http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context)) as client:
        client.request("GET", "/v2", headers={"Authorization": f"Bearer {key}"})
        return client.getresponse().status


def test_sighup_reads_certificate_and_keys_again_without_losing_a_connection(
    tmp_path: Path, authority: Authority, issued: Issued
) -> None:
    models.add1(tmp_path / "models")
    auth = tmp_path / "auth.toml"
    first = create_key(auth, "first")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    options = (*server_options(issued), "--auth", str(auth), "--log-level", "info")
    with serve(tmp_path / "models", tmp_path / "log", *options, ready=False) as server:
        server.wait_ready(context=context)
        with closing(http.client.HTTPSConnection("127.0.0.1", server.http_port, context=context)) as client:
            client.request("GET", "/v2", headers={"Authorization": f"Bearer {first}"})
            assert client.getresponse().read()
            before = presented(server.http_port)
            authority.issue("server")
            second = create_key(auth, "second")
            server.process.send_signal(signal.SIGHUP)
            until(lambda: presented(server.http_port) != before, lambda: server.output)
            assert presented(server.grpc_port) == issued.certificate.read_text()
            until(lambda: status(server, context, second) == 200, lambda: server.output)
            client.request("GET", "/v2", headers={"Authorization": f"Bearer {first}"})
            assert client.getresponse().status == 200
            server.process.send_signal(signal.SIGHUP)
            server.wait_for("read 2 keys, 0 certificates and 0 token issuers")
        assert server.stop() == 0


def test_sighup_with_broken_files_keeps_what_was_read_before(
    tmp_path: Path, authority: Authority, issued: Issued
) -> None:
    models.add1(tmp_path / "models")
    auth = tmp_path / "auth.toml"
    key = create_key(auth, "app")
    context = ssl.create_default_context(cafile=str(authority.certificate))
    options = (*server_options(issued), "--auth", str(auth))
    with serve(tmp_path / "models", tmp_path / "log", *options, ready=False) as server:
        server.wait_ready(context=context)
        issued.key.write_text("broken")
        auth.write_text("[[keys]]")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for("new connections still get the previous certificate")
        server.wait_for("the previous keys stay in force")
        assert status(server, context, key) == 200


def test_a_terminal_that_closes_stops_a_server_that_could_reload(tmp_path: Path, issued: Issued) -> None:
    models.add1(tmp_path / "models")
    ports = [
        f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), free_ports(3), strict=True)
    ]
    with closing(Terminal("serve", tmp_path / "models", *ports, *server_options(issued))) as terminal:
        terminal.read_until("Ctrl-C stops")
        port = int(ports[0].partition("=")[2])
        before = presented(port)
        terminal.process.send_signal(signal.SIGHUP)  # as `kill -HUP` from another terminal does
        assert presented(port) == before
        terminal.hang_up()
        assert terminal.process.wait(30) == 0
