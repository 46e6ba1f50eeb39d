"""The warning for a server that other machines can reach."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from backline.cli.serve.report import exposure
from backline.lifecycle.options import LifecycleOptions
from backline.server import ServerOptions
from backline.wire.tls import TlsFiles
from support import models
from support.server import serve

CERTIFICATE = Path("server.crt"), Path("server.key")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "fe80::1%eth0", "server.example", ""])
def test_an_address_reachable_from_elsewhere_is_warned_about(host: str) -> None:
    told = exposure(ServerOptions((), host=host, lifecycle=LifecycleOptions(mode="explicit")))
    assert (
        f"anyone who can reach this server's address, {host}, may use its models, but not change anything"
        in told
    )
    assert "--auth" in told
    assert "--ssl-client-ca" in told
    assert "nothing is encrypted" in told


def test_what_an_open_server_allows_is_told() -> None:
    options = ServerOptions(
        (), host="0.0.0.0", lifecycle=LifecycleOptions(mode="explicit"), insecure_open=True
    )
    assert "may use, load and unload its models" in exposure(options)


def test_a_server_with_keys_warns_only_that_they_are_sent_in_clear() -> None:
    options = ServerOptions((), host="0.0.0.0", auth=Path("auth.toml"))
    assert "sent unencrypted" in exposure(options)
    assert exposure(replace(options, tls=TlsFiles(*CERTIFICATE))) == ""


@pytest.mark.parametrize(
    "options",
    [
        {"host": "127.0.0.1"},
        {"host": "127.0.0.2"},
        {"host": "::1"},
        {"host": "localhost"},
        {"host": "0.0.0.0", "tls": TlsFiles(*CERTIFICATE, Path("ca.crt"))},
        {"host": "0.0.0.0", "http_port": None, "grpc_port": None, "metrics_port": None},
    ],
)
def test_no_warning_for_servers_that_others_cannot_reach(options: dict[str, Any]) -> None:
    assert exposure(ServerOptions((), **options)) == ""


def test_tls_alone_admits_anyone() -> None:
    warning_text = exposure(ServerOptions((), host="0.0.0.0", tls=TlsFiles(*CERTIFICATE)))
    assert warning_text
    assert "encrypted" not in warning_text


def test_the_warning_is_in_the_report_and_in_the_log(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    file = tmp_path / "file.log"
    with serve(tmp_path / "models", tmp_path / "log", "--host", "0.0.0.0", "--log-file", str(file)) as server:
        assert server.stop() == 0
    warning = "anyone who can reach this server's address, 0.0.0.0, may use its models"
    assert warning in server.output
    assert warning in file.read_text()
