"""The life of a server process: startup, draining, overload, exit."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import psutil

import backline
from backline_client.client.errors import BacklineError, ConnectionFailed, Unavailable
from support import models
from support.server import free_ports, serve

BODY = (
    b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,512],"data":['
    + b",".join([b"1"] * 512)
    + b"]}]}"
)


def test_startup_fails_and_names_a_port_in_use(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [
                sys.executable, "-m", "backline", "serve", str(tmp_path / "repository"),
                "--http-port", str(port), "--grpc-port", "0",
            ],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert done.returncode == 1
    assert str(port) in done.stderr
    assert "--http-port" in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_under_load_completes_accepted_requests(tmp_path: Path) -> None:
    models.slow(tmp_path / "repository", layers=200)
    broken: list[str] = []
    answered = 0
    stop = threading.Event()

    def load(port: int) -> None:
        nonlocal answered
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        sent = False
        while not stop.is_set():
            try:
                sent = False
                connection.request("POST", "/v2/models/slow/infer", BODY)
                sent = True
                answer = connection.getresponse()
                answer.read()
            except ConnectionError as error:
                # Refused, or closed between requests, without a partial answer: the server is draining.
                if sent and not stopping.is_set():
                    broken.append(repr(error))
                return
            if answer.status == 200:
                answered += 1
            elif answer.status != 503:
                broken.append(f"status {answer.status}")

    stopping = threading.Event()
    with serve(tmp_path / "repository", tmp_path / "log") as server, ThreadPoolExecutor(8) as clients:
        running = [clients.submit(load, server.http_port) for _ in range(8)]
        while answered < 50 and not any(one.done() for one in running):
            time.sleep(0.01)
        stopping.set()
        server.process.send_signal(signal.SIGTERM)
        status = server.process.wait(60)
        stop.set()
        for one in running:
            one.result(60)

    assert status == 0
    assert answered >= 50
    assert broken == []
    assert "Traceback" not in server.output


def test_an_overloaded_model_immediately_refuses_what_it_cannot_queue(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    models.slow(repository, layers=200)
    (repository / "slow" / "config.pbtxt").write_text(
        "dynamic_batching { default_queue_policy { max_queue_size: 8 } }"
    )
    answers: list[float] = []
    refusals: list[float] = []

    def load(url: str) -> None:
        with backline.connect(url) as client:
            for _ in range(20):
                begin = time.monotonic()
                try:
                    client["slow"](np.ones((1, 512), np.float32))
                    answers.append(time.monotonic() - begin)
                except Unavailable:
                    refusals.append(time.monotonic() - begin)

    with serve(repository, tmp_path / "log") as server:
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        with ThreadPoolExecutor(32) as clients:
            for one in [clients.submit(load, server.url) for _ in range(32)]:
                one.result(120)
        grown = process.memory_info().rss - before

    assert len(answers) + len(refusals) == 32 * 20
    assert answers
    assert refusals
    assert sorted(refusals)[len(refusals) // 2] < 0.05
    assert grown < 64 * 1024 * 1024


def test_the_server_is_live_but_not_ready_if_a_model_failed_to_load(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    (tmp_path / "repository" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "broken" / "1" / "model.onnx").write_bytes(b"no model")

    with (
        serve(tmp_path / "repository", tmp_path / "log", ready=False) as server,
        backline.connect(server.url) as client,
    ):
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                if client["add1"](np.zeros((1, 16), np.float32)):
                    break
            except (ConnectionFailed, BacklineError):
                time.sleep(0.02)
        assert client.live()
        assert not client.ready()
        assert "broken" in server.output


def test_not_ready_can_use_tritons_status(tmp_path: Path) -> None:
    (tmp_path / "repository" / "broken" / "1").mkdir(parents=True)
    (tmp_path / "repository" / "broken" / "1" / "model.onnx").write_bytes(b"no model")

    with serve(tmp_path / "repository", tmp_path / "log", "--not-ready-status", "400", ready=False) as server:
        while "UNAVAILABLE" not in server.output:
            assert server.process.poll() is None, server.output
            time.sleep(0.02)
        connection = HTTPConnection("127.0.0.1", server.http_port, timeout=10)
        connection.request("GET", "/v2/health/ready")
        assert connection.getresponse().status == 400


def test_a_unix_socket_serves_and_its_file_is_removed_at_exit(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    path = tmp_path / "backline.sock"

    with serve(tmp_path / "repository", tmp_path / "log", "--unix-socket", str(path)) as server:
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            client.sendall(b"GET /v2/health/ready HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(1000).startswith(b"HTTP/1.1 200 OK\r\n")
        assert server.stop() == 0

    assert not path.exists()


def test_options_are_read_from_the_environment(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    (port,) = free_ports(1)

    process = subprocess.Popen(
        [sys.executable, "-m", "backline", "serve",
         str(tmp_path / "repository"), "--no-grpc", "--no-metrics"],
        env={"BACKLINE_HTTP_PORT": str(port), "PATH": ""},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with backline.connect(f"http://127.0.0.1:{port}") as client:
            client.wait_ready(30)
            assert client.models()
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_memory_of_large_requests_is_released(tmp_path: Path) -> None:
    models.ident(tmp_path / "repository", dims=("M",))

    with serve(tmp_path / "repository", tmp_path / "log") as server, backline.connect(server.url) as client:
        process = psutil.Process(server.process.pid)
        client["ident"](np.ones((1, 4), np.float32))
        before = process.memory_info().rss
        with ThreadPoolExecutor(4) as clients:
            for one in [
                clients.submit(client["ident"], np.ones((1, 10_000_000), np.float32)) for _ in range(8)
            ]:
                one.result(60)
        client["ident"](np.ones((1, 4), np.float32))
        end = time.monotonic() + 10
        while process.memory_info().rss > before + 32 * 1024 * 1024 and time.monotonic() < end:
            time.sleep(0.05)
        assert process.memory_info().rss < before + 32 * 1024 * 1024


def test_a_crash_in_native_code_prints_the_stacks_of_all_threads(tmp_path: Path) -> None:
    models.add1(tmp_path / "repository")
    log_file = tmp_path / "server.log"
    with serve(tmp_path / "repository", tmp_path / "output", f"--log-file={log_file}") as server:
        server.process.send_signal(signal.SIGSEGV)
        status = server.process.wait(30)
        printed = server.output

    assert status == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault" in printed
    assert "Current thread" in printed
    assert "serve_until_stopped" in printed
