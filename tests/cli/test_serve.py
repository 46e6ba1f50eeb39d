"""`backline serve` as a process."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import click
import numpy as np
import pytest

from backline.cli import serve as serve_command
from backline.cli.serve import report as serve_report
from backline.cli.serve import within_memory, within_open_files
from backline.engine.config.model_config import ModelConfig
from backline.engine.engine import Engine
from backline.engine.model import LoadProgress, Model, ModelState
from backline.lifecycle.journal import LoadEvent
from backline.wire.limits import MIB, Limits
from backline_client.client import connect
from backline_client.client.errors import ConnectionFailed
from support import models
from support.repositories import put
from support.server import ServerProcess, serve

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]


def wait_report(server: ServerProcess) -> str:
    """Output up to the last line of the report."""
    while "Ctrl-C stops" not in server.output:
        assert server.process.poll() is None, server.output
        time.sleep(0.01)
    return server.output


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    models.add1(tmp_path / "models")
    return tmp_path / "models"


def test_the_report_shows_models_states_reasons_and_urls(repository: Path, tmp_path: Path) -> None:
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no")
    models.add1(repository, "patient")
    (repository / "patient" / "model.toml").write_text(
        "max_batch_size = 8\ndynamic_batching.max_queue_delay_microseconds = 500\n"
    )
    with serve(repository, tmp_path / "log", ready=False) as server:
        wait_report(server)
    output = server.output  # a thread writes the log, maybe after the report
    assert re.search(r"^add1 +1 +READY +inline +1 +64 +up to \d+ together, no delay$", output, re.MULTILINE)
    assert re.search(
        r"^patient +1 +READY +inline +1 +8 +up to 8 together, waits 500 us$", output, re.MULTILINE
    )
    assert re.search(r"^broken +1 +UNAVAILABLE .*failed, see its message$", output, re.MULTILINE)
    assert len(re.findall(r"broken/1/model\.onnx", output)) == 1, "a failure is told once"
    assert "loaded add1 version 1" in output
    assert server.url in output
    assert server.grpc_url in output
    assert "Not all models are ready: 2 of 3" in output
    assert "\x1b[" not in output


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_works(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log") as server:
        line = next(line for line in wait_report(server).splitlines() if line.startswith("  curl "))
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert '"data":[2.0' in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_lines_have_a_place_for_the_key(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log", environment={"BACKLINE_API_KEY": "bk_" + "x" * 40}) as server:
        lines = [
            line.strip()
            for line in wait_report(server).splitlines()
            if "Bearer KEY" in line or "api_key='KEY'" in line
        ]
        outputs = [
            subprocess.run(
                line.replace("KEY", "bk_" + "x" * 40), shell=True, capture_output=True, text=True, check=True
            ).stdout
            for line in lines
        ]
    assert "with a key for KEY:" in server.output
    assert len(outputs) == 2
    assert all("OUTPUT0" in output for output in outputs)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_lines_of_a_model_of_pictures_send_a_file(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    (tmp_path / "models" / "size" / "1").mkdir(parents=True)
    (tmp_path / "models" / "size" / "1" / "model.py").write_text(PICTURE)
    pillow.new("RGB", (30, 20)).save(tmp_path / "picture.png")
    with serve(tmp_path / "models", tmp_path / "log") as server:
        lines = [
            line for line in wait_report(server).splitlines() if line.startswith("  ") and "FILE" in line
        ]
        outputs = [
            subprocess.run(
                line.replace("FILE", "picture.png"),
                shell=True,
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
            ).stdout
            for line in lines
        ]
    assert "with a file for FILE:" in server.output
    assert len(outputs) == 2
    assert all("30 x 20" in output for output in outputs)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_curl_line_of_a_large_model_works(tmp_path: Path) -> None:
    models.ident(tmp_path / "models")
    with serve(tmp_path / "models", tmp_path / "log") as server:
        line = next(line for line in wait_report(server).splitlines() if "| curl " in line)
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path
        )
    assert "200 OK" in done.stdout
    assert (tmp_path / "answer.bin").stat().st_size > 602_112


def test_the_printed_python_line_works(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log") as server:
        line = next(
            line for line in wait_report(server).splitlines() if " -c " in line and "backline.connect" in line
        )
        done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True)
    assert "'OUTPUT0': array([[2., 2." in done.stdout


PICTURE = """
from backline.model import Image

def predict(image: Image["RGB"]) -> str:
    return f"{image.shape[1]} x {image.shape[0]}"
"""
STREAM = """
from collections.abc import Iterator

def words(text: str) -> Iterator[str]:
    yield from (text, "more")
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_printed_lines_of_a_decoupled_model_work(tmp_path: Path) -> None:
    put(tmp_path / "models" / "words" / "1" / "model.py", STREAM)
    with serve(tmp_path / "models", tmp_path / "log") as server:
        lines = [line for line in wait_report(server).splitlines() if line.startswith("  ")]
        done = [
            subprocess.run(line, shell=True, capture_output=True, text=True, timeout=30, check=True).stdout
            for line in lines
            if line
        ]
    assert [line.count("more") for line in done] == [1, 1]


SEQUENCES = 'backend: "identity"\nsequence_batching { }\n' + "\n".join(
    f'{kind} {{ name: "{name}" data_type: TYPE_FP32 dims: [1] }}'
    for kind, name in (("input", "a"), ("output", "b"))
)


def test_no_sample_is_printed_for_a_sequence_model(tmp_path: Path) -> None:
    put(tmp_path / "models" / "steps" / "config.pbtxt", SEQUENCES)
    (tmp_path / "models" / "steps" / "1").mkdir()
    with serve(tmp_path / "models", tmp_path / "log") as server:
        assert "Try it" not in wait_report(server)


def test_a_failure_is_printed_at_once_if_the_log_goes_elsewhere(repository: Path, tmp_path: Path) -> None:
    put(repository / "broken" / "1" / "model.onnx", "no")
    with serve(repository, tmp_path / "log", "--log-file", str(tmp_path / "file"), ready=False) as server:
        assert re.search(
            r"^FAILED broken version 1 \(\d/2\): .*model\.onnx", wait_report(server), re.MULTILINE
        )
    assert "failed to load 'broken' version 1" in (tmp_path / "file").read_text()


async def test_a_slow_load_gets_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_report, "PROGRESS_EVERY", 0)
    engine, model = Engine(), Model("big", "1", ModelConfig("big"))
    model.progress = LoadProgress("load", time.monotonic() - 31)
    engine.add(model)
    report = serve_report.LoadReport(engine, bar=False)
    printed = ""
    while not printed:
        await asyncio.sleep(0)
        printed = capsys.readouterr().out
    report.close()
    assert printed == "still loading big version 1 after 30 s: load\n"


async def test_the_bar_shows_what_loads_are_doing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve_report, "PROGRESS_AFTER", 0)
    monkeypatch.setattr(serve_report, "PROGRESS_EVERY", 0)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    engine, model = Engine(), Model("big", "1", ModelConfig("big"))
    model.progress = LoadProgress("environment", time.monotonic(), 1 << 20, 2 << 20)
    engine.add(model)
    report = serve_report.LoadReport(engine)
    printed, end = "", time.monotonic() + 10
    while "big 1: environment, 1 MiB of 2 MiB" not in printed and time.monotonic() < end:
        await asyncio.sleep(0)
        printed += capsys.readouterr().out
    report.close()
    assert time.monotonic() < end


async def test_loads_that_end_together_are_printed_together(monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[str] = []
    monkeypatch.setattr(serve_report, "say", printed.append)
    report = serve_report.LoadReport(Engine(), bar=False)

    for number in (1, 2, 3):
        report.on_event(LoadEvent(f"m{number}", "1", ModelState.READY, "", 0.5, number, 3))
    report.close()

    assert len(printed) == 1
    assert re.findall(r"m\d version 1 in 0\.50 s \(\d/3\)", printed[0]) == [
        f"m{number} version 1 in 0.50 s ({number}/3)" for number in (1, 2, 3)
    ]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_stops_the_server_with_status_0(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with serve(repository, tmp_path / "log") as server:
        wait_report(server)
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        assert server.output.rstrip().endswith("Stopped")


def test_a_service_manager_reloads_a_server_without_keys_and_certificates(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with serve(repository, tmp_path / "log") as server:
        wait_report(server)
        server.process.send_signal(signal.SIGHUP)
        with connect(server.url) as client:
            assert [client.ready() for _ in range(3)] == [True] * 3
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_was_ignored_at_the_start_stops_the_server(
    repository: Path, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_IGN)  # as in the background jobs of a shell script
    try:
        with serve(repository, tmp_path / "log") as server:
            wait_report(server)
            server.process.send_signal(number)
            assert server.process.wait(30) == 0
    finally:
        signal.signal(number, before)


SLOW = """
import sys, time

def slow(seconds: float) -> str:
    print("asleep", file=sys.stderr, flush=True)
    time.sleep(seconds)
    return "done"
"""


def test_a_hanging_run_does_not_block_shutdown(repository: Path, tmp_path: Path) -> None:
    put(repository / "slow" / "1" / "model.py", SLOW)
    trace = tmp_path / "trace.json"
    options = (
        "--exit-timeout-secs",
        "0.5",
        "--trace-config",
        f"triton,file={trace}",
        "--trace-config",
        "level=TIMESTAMPS",
    )
    with (
        serve(repository, tmp_path / "log", *options, "--trace-config", "rate=1") as server,
        connect(server.url) as client,
    ):
        client["add1"](np.zeros((1, 16), np.float32))
        with ThreadPoolExecutor(1) as caller:
            asked = caller.submit(client["slow"], [100.0])
            server.wait_for("asleep")
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(20) == 0
            with pytest.raises(ConnectionFailed):
                asked.result()
        assert "A run is still in progress and is abandoned" in server.output
    assert json.loads(trace.read_text())


def test_a_port_in_use_is_reported_with_its_option(backline: Run, repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = backline("serve", repository, "--http-port", 0, "--grpc-port", port, "--no-metrics")
    assert done.returncode == 1
    assert f"port {port} of 127.0.0.1 is in use" in done.stderr
    assert "--grpc-port" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_missing_repository_is_reported(backline: Run) -> None:
    done = backline("serve", "/nowhere", "--http-port", 0, "--no-grpc", "--no-metrics")
    assert done.returncode == 1
    assert "/nowhere" in done.stderr


def test_options_can_be_environment_variables(repository: Path, tmp_path: Path) -> None:
    with serve(
        repository,
        tmp_path / "log",
        environment={"BACKLINE_NO_METRICS": "1", "BACKLINE_UNIX_SOCKET": str(tmp_path / "s")},
    ) as server:
        assert "metrics" not in wait_report(server)
        with connect(f"unix:{tmp_path / 's'}") as client:
            assert client.ready()


def test_an_input_above_the_limit_is_refused(repository: Path, tmp_path: Path) -> None:
    with serve(repository, tmp_path / "log", "--http-max-input-size", "2000") as server:
        request = urllib.request.Request(f"{server.url}/v2/models/add1/infer", data=b"x" * 3000)
        with pytest.raises(urllib.error.HTTPError, match="413"):
            urllib.request.urlopen(request, timeout=10)


def test_tls_is_served_and_verified(repository: Path, tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    request = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
        f" -addext {names} -keyout {key} -out {certificate}"
    )
    subprocess.run(request.split(), check=True, capture_output=True)
    value = np.ones((1, 16), np.float32)
    with serve(
        repository,
        tmp_path / "log",
        "--ssl-certificate",
        str(certificate),
        "--ssl-key",
        str(key),
        ready=False,
    ) as server:
        wait_report(server)
        for url in (f"https://127.0.0.1:{server.http_port}", f"grpcs://localhost:{server.grpc_port}"):
            with connect(url, ca=certificate) as client:
                assert client["add1"](value)["OUTPUT0"][0, 0] == 2
        with connect(f"https://127.0.0.1:{server.http_port}", verify=False) as client:
            assert client.ready()
        with (
            connect(f"https://127.0.0.1:{server.http_port}") as client,
            pytest.raises(ConnectionFailed, match=r"cannot be verified.*ca="),
        ):
            client.ready()


def test_models_change_at_run_time_and_the_log_says_so(repository: Path, tmp_path: Path) -> None:
    options = (
        "--model-control-mode",
        "poll",
        "--repository-poll-secs",
        "0.05",
        "--state-dir",
        str(tmp_path / "state"),
        "--log-level",
        "info",
    )
    with serve(repository, tmp_path / "log", *options) as server:
        wait_report(server)
        models.add1(repository, version="2", constant=2)
        (repository / "broken" / "1").mkdir(parents=True)
        (repository / "broken" / "1" / "model.onnx").write_bytes(b"no")
        end = time.monotonic() + 20
        while (
            "failed to load 'broken' version 1" not in server.output
            or "successfully unloaded 'add1' version 1" not in server.output
        ):
            assert time.monotonic() < end, server.output
            time.sleep(0.01)
        with connect(server.url) as client:
            assert client["add1"](np.zeros((1, 16), np.float32))["OUTPUT0"][0, 0] == 2
            assert client.ready()
    assert (tmp_path / "state" / "audit.jsonl").exists()


def test_mode_explicit_loads_only_the_named_models(repository: Path, tmp_path: Path) -> None:
    models.add1(repository, "other")
    options = (
        "--model-control-mode",
        "explicit",
        "--load-model",
        "add1",
        "--state-dir",
        str(tmp_path / "state"),
    )
    with serve(repository, tmp_path / "log", *options) as server:
        output = wait_report(server)
    assert re.search(r"^add1 +1 +READY", output, re.MULTILINE)
    assert re.search(r"^other +- +NOT LOADED", output, re.MULTILINE)
    assert "Ready: 1 of 1" in output


def test_load_model_needs_mode_explicit(backline: Run, repository: Path) -> None:
    done = backline("serve", repository, "--load-model", "add1")
    assert done.returncode == 2
    assert "--load-model needs --model-control-mode explicit" in done.stderr


def test_the_report_shows_labels_and_models_on_demand(repository: Path, tmp_path: Path) -> None:
    models.add1(repository, version="2")
    (repository / "add1" / "config.pbtxt").write_text(
        'parameters { key: "backline.labels.stable" value { string_value: "1" } }'
    )
    models.add1(repository, "later")
    (repository / "later" / "config.pbtxt").write_text(
        'parameters { key: "backline.load" value { string_value: "on_demand" } }'
    )
    with serve(repository, tmp_path / "log") as server:
        output = wait_report(server)
    assert re.search(r"^add1 +1 +READY +stable ", output, re.MULTILINE)
    assert re.search(r"^later +1 +ON DEMAND ", output, re.MULTILINE)
    assert "Ready: 2 of 3 model versions, 1 loaded on demand," in output


def test_a_failing_triton_model_has_one_traceback_and_one_row(repository: Path, tmp_path: Path) -> None:
    tensors = (
        'input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }'
        ' output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }'
    )
    put(repository / "wrong" / "config.pbtxt", f'backend: "python" {tensors}')
    code = (
        "class TritonPythonModel:\n"
        "    def initialize(self, args):\n        1 / 0\n"
        "    def execute(self, requests):\n        pass\n"
    )
    put(repository / "wrong" / "1" / "model.py", code)
    with serve(repository, tmp_path / "log", ready=False) as server:
        wait_report(server)
        server.stop()  # which also completes the log: a thread writes it, and may be behind the report
        output = server.output
    assert output.count("Traceback") == 1
    assert re.search(r"^wrong +1 +UNAVAILABLE .*failed, see its message$", output, re.MULTILINE)


def test_exit_on_error_prints_the_reasons(backline: Run, repository: Path) -> None:
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no")
    done = backline("serve", repository, "--http-port", 0, "--no-grpc", "--no-metrics", "--exit-on-error")
    assert done.returncode == 1
    assert "not all models could be loaded, but all are required to start" in done.stderr
    assert "broken version 1: " in done.stderr


def test_a_flag_may_have_a_value_as_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_EXIT_ON_ERROR", "true")

    params = serve_command.command.make_context(
        "serve", ["models", "--exit-on-error=false", "--strict-readiness=0", "--trust-pickle=true"]
    ).params

    assert (params["exit_on_error"], params["strict_readiness"], params["trust_pickle"]) == (
        False,
        False,
        True,
    )
    assert params["repositories"] == ("models",)


def test_without_exit_on_error_a_missing_repository_is_awaited(tmp_path: Path) -> None:
    with serve(tmp_path / "late", tmp_path / "log", "--exit-on-error=false", ready=False) as server:
        server.wait_for("does not exist", 60)
        server.wait_started()
        models.add1(tmp_path / "hidden")
        (tmp_path / "hidden").rename(tmp_path / "late")
        server.wait_ready()


def test_a_flag_with_a_non_boolean_value_is_refused() -> None:
    with pytest.raises(click.BadParameter, match="'maybe' is not a valid boolean"):
        serve_command.command.make_context("serve", ["models", "--exit-on-error=maybe"])


def test_triton_options_are_refused_in_one_message_with_alternatives(backline: Run, repository: Path) -> None:
    done = backline(
        "serve",
        repository,
        "--backend-config=onnxruntime,threads=2",
        "--allow-grpc",
        "false",
        "--http-thread-count=8",
    )

    assert done.returncode == 2
    assert re.search(
        r"--backend-config: parameters in .*\n +--allow-grpc: --no-grpc for false.*\n"
        r" +--http-thread-count: leave it out",
        done.stderr,
    )


@pytest.mark.parametrize(
    ("allowed", "connections"), [((8448, 8448), 8192), ((64, 9000), 8192), ((64, 1000), 744), ((40, 40), 20)]
)
def test_connections_stay_below_the_open_file_limit(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    allowed: tuple[int, int],
    connections: int,
) -> None:
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: allowed)
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))

    limits = within_open_files(Limits())

    assert limits.max_connections == connections
    assert given == ([] if allowed[0] == allowed[1] == 8448 else [(min(8448, allowed[1]), allowed[1])])
    assert ("raise the limit (ulimit -n 8448)" in caplog.text) == (connections < 8192)


@pytest.mark.parametrize(
    ("memory", "largest", "buffered"),
    [
        (None, 64, 1024),
        (64 << 10, 64, 1024),
        (4 << 10, 64, 512),
        (256, 64, 64),
        (256, 8, 32),
        (16, 2048, 1024),
    ],
)
def test_request_bodies_take_a_part_of_the_memory_only(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, largest: int, buffered: int
) -> None:
    """Sizes are in MiB."""
    monkeypatch.setattr("backline.cli.serve.memory_limit", lambda: None if memory is None else memory * MIB)

    limits = within_memory(Limits(max_body_size=largest * MIB))

    assert limits.max_buffered_bytes == buffered * MIB


def test_the_open_file_limit_is_raised_for_the_connections(repository: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))  # enough for the tests themselves
    try:
        with serve(repository, tmp_path / "log") as server:
            assert resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE) == (min(8448, hard), hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_an_unwritable_state_folder_is_reported_at_start(repository: Path, tmp_path: Path) -> None:
    state = ("--state-dir", "/proc/nobody-can-write-here")
    with serve(repository, tmp_path / "log", "--model-control-mode", "poll", *state) as server:
        assert "labels and the audit log cannot be stored: '" in wait_report(server)
    with serve(repository, tmp_path / "log", *state) as server:
        assert "labels and the audit log" not in wait_report(server)
    keys = tmp_path / "keys.toml"
    keys.write_text('[anonymous]\nscopes = ["infer", "read"]\n')
    keys.chmod(0o600)
    with serve(repository, tmp_path / "log", "--auth", str(keys), *state) as server:  # it logs refusals
        assert "labels and the audit log cannot be stored: '" in wait_report(server)


def test_without_strict_readiness_a_failed_model_is_ignored(repository: Path, tmp_path: Path) -> None:
    (repository / "broken" / "1").mkdir(parents=True)
    (repository / "broken" / "1" / "model.onnx").write_bytes(b"no")
    with serve(repository, tmp_path / "log", "--no-strict-readiness") as server:
        assert "Not all models are ready" in wait_report(server)


def test_damaged_labels_are_reported_at_start(backline: Run, repository: Path, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text("{")
    done = backline(
        "serve", repository, "--http-port", 0, "--no-grpc", "--no-metrics", "--state-dir", tmp_path
    )
    assert done.returncode == 1
    assert f"the labels of models in '{tmp_path / 'labels.json'}' are damaged" in done.stderr


def test_namespaces_are_repository_names(tmp_path: Path) -> None:
    for name in ("blue", "green"):
        models.add1(tmp_path / name)
    with serve(tmp_path / "blue", tmp_path / "log", str(tmp_path / "green"), "--model-namespacing") as server:
        output = wait_report(server)
    assert re.search(r"^blue\.add1 +1 +READY", output, re.MULTILINE)
    assert re.search(r"^green\.add1 +1 +READY", output, re.MULTILINE)


def test_a_misspelt_environment_variable_is_warned_of(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    environment = {
        "BACKLINE_MAX_CONECTIONS": "7",
        "BACKLINE_COLOUR": "red",
        "BACKLINE_URL": "http://localhost:8000",  # read by `backline infer`
        "BACKLINE_PORT": "tcp://10.0.0.1:8000",  # set by Kubernetes, like the next ones
        "BACKLINE_SERVICE_PORT_HTTP": "8000",
        "BACKLINE_PORT_8000_TCP_ADDR": "10.0.0.1",
        "BACKLINE_IDLE_TIMEOUT": "60",
        "BACKLINE_API_KEY": "a" * 40,
    }
    with serve(tmp_path / "models", tmp_path / "server.log", environment=environment) as server:
        lines = [
            line
            for line in server.output.splitlines()
            if "environment variable" in line and "BACKLINE_TEST" not in line
        ]

    assert len(lines) == 2
    assert lines[0].endswith(
        "the environment variable BACKLINE_COLOUR has no effect; `backline serve --help-all` lists all"
    )
    assert lines[1].endswith(
        "the environment variable BACKLINE_MAX_CONECTIONS has no effect;"
        " did you mean BACKLINE_MAX_CONNECTIONS?"
    )
