"""The service under systemd: its units, reports of its state, and sockets that systemd opens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from backline.system.service_manager import notify, passed_sockets
from backline_client.client import connect
from backline_client.client.errors import BacklineError
from docs.pages import ROOT
from support import models
from support.server import free_ports, serve
from support.tools import tool

UNITS = ROOT / "deploy" / "systemd"


def test_the_units_are_valid(tmp_path: Path) -> None:
    for unit in UNITS.iterdir():
        (tmp_path / unit.name).write_text(unit.read_text())
    checked = subprocess.run(
        [tool("systemd-analyze"), "verify", "--man=no", *map(str, tmp_path.iterdir())],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip

    assert "backline" not in checked.stderr, checked.stderr


def test_a_server_reports_that_it_is_ready_and_that_it_stops(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with serve(tmp_path / "models", tmp_path / "log", ready=False, environment=environment) as server:
            assert manager.recv(100) == b"READY=1"
            with urllib.request.urlopen(f"{server.url}/v2/health/ready", timeout=10) as answer:
                assert answer.status == 200
            server.process.send_signal(signal.SIGTERM)
            assert manager.recv(100) == b"STOPPING=1"


def test_a_service_manager_that_is_gone_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for address in (str(tmp_path / "gone"), "@no-such-name", "vsock:2:1", ""):
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")


def test_a_server_serves_the_sockets_that_it_is_passed(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    port, unused = free_ports(2)
    command = [
        sys.executable,
        "-m",
        "backline",
        "serve",
        str(tmp_path / "models"),
        "--http-port",
        str(unused),
    ]
    activate = [
        tool("systemd-socket-activate"),
        "--listen",
        f"127.0.0.1:{port}",
        "--listen",
        str(tmp_path / "s"),
    ]
    settings = [f"--setenv={name}" for name in ("PATH", "HOME", "BACKLINE_ISOLATE") if name in os.environ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*activate, *settings, *command], stdout=log, stderr=log)
    try:
        for url in (f"http://127.0.0.1:{port}", f"grpc://127.0.0.1:{port}", f"unix:{tmp_path}/s"):
            with connect(url, connect_timeout=30, retries=300) as client:
                client.wait_ready(timeout=60)
                assert client["add1"](np.ones((1, 16), np.float32))["OUTPUT0"][0, 0] == 2
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", unused)):
            pass
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_sockets_for_another_process_are_left_alone() -> None:
    environment = {"LISTEN_PID": "1", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "a:b"}

    assert passed_sockets(environment) == []
    assert environment == {}


def test_sockets_that_other_machines_reach_allow_no_changes_without_a_key(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "backline", "serve", str(tmp_path / "models")]
    mode = ["--model-control-mode", "explicit"]
    activate = [
        tool("systemd-socket-activate"),
        "--listen",
        f"0.0.0.0:{port}",
        "--setenv=PATH",
        "--setenv=HOME",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*activate, *command, *mode], stdout=log, stderr=log)
    try:
        with connect(f"http://127.0.0.1:{port}", connect_timeout=30, retries=300) as client:
            client.wait_ready(timeout=60)
            with pytest.raises(BacklineError, match="key"):
                client.load("add1")
    finally:
        process.terminate()
        process.wait(30)
