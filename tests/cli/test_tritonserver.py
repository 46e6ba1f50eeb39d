"""`backline tritonserver`: how Triton's command line is translated, and what its defaults are."""

from __future__ import annotations

import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from backline.cli.serve.report import exposure
from backline.cli.tritonserver import DEFAULTS, read_arguments, render
from backline.cli.tritonserver.options import OPTIONS
from backline.observe.metrics_config import MetricsConfig
from backline.schedule.cache.config import LocalOptions
from backline.server import ServerOptions
from support import models
from support.server import free_ports
from support.triton_server import tritonserver
from support.waiting import until

REPOSITORY = "--model-repository=models"


def options(*arguments: str) -> ServerOptions:
    return read_arguments([REPOSITORY, *arguments])[0].options


def test_the_defaults_are_tritons() -> None:
    given = options()

    assert (given.name, given.host, given.grpc_host) == ("triton", "0.0.0.0", "0.0.0.0")
    assert (given.http_port, given.grpc_port, given.metrics_port) == (8000, 8001, 8002)
    assert (given.exit_on_error, given.not_ready_status) == (True, 400)
    assert (given.lifecycle.mode, given.lifecycle.strict_readiness) == ("none", True)
    assert given.lifecycle.default_queue == "any"
    assert (given.allow_client_shm, given.insecure_open) == (True, True)
    log = read_arguments([REPOSITORY])[0].log
    assert (log.info, log.style, log.format) == (True, "triton", "default")


def test_what_everybody_may_do_is_told() -> None:
    assert "may use its models and change settings; nothing is encrypted" in exposure(options())
    explicit = exposure(options("--model-control-mode=explicit"))
    assert "0.0.0.0, may use, load and unload its models and change settings" in explicit


def test_environment_variables_override_tritons_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BACKLINE_HOST", "127.0.0.1")
    monkeypatch.setenv("BACKLINE_EXIT_ON_ERROR", "false")

    assert (options().host, options().exit_on_error) == ("127.0.0.1", False)


@pytest.mark.parametrize("name", DEFAULTS)
def test_every_default_is_a_parameter_of_the_command(name: str) -> None:
    from backline.cli.tritonserver import _parse

    assert name in {parameter.name for parameter in _parse.params}


CASES: list[tuple[tuple[str, ...], Callable[[ServerOptions], Any], Any]] = [
    (("--model-store=b",), lambda o: o.repositories, ("models", "b")),
    (("--id=mine", "--id=yours"), lambda o: o.name, "yours"),
    (("--allow-http=0",), lambda o: o.http_port, None),
    (("--allow-grpc=false", "--allow-metrics=off"), lambda o: (o.grpc_port, o.metrics_port), (None, None)),
    (("--allow-grpc=true",), lambda o: o.grpc_port, 8001),
    (("--http-address=::1",), lambda o: [p.host for p in o.ports], ["::1", "0.0.0.0", "::1"]),
    (("--metrics-address=::1",), lambda o: [p.host for p in o.ports], ["0.0.0.0", "0.0.0.0", "::1"]),
    (("--reuse-grpc-port=1",), lambda o: [p.reuse for p in o.ports], [False, True, False]),
    (("--model-control-mode=POLL", "--repository-poll-secs=3"), lambda o: o.lifecycle.poll_seconds, 3.0),
    (("--model-control-mode=poll", "--repository-poll-secs=0"), lambda o: o.lifecycle.mode, "none"),
    (("--repository-poll-secs=0",), lambda o: o.lifecycle.mode, "none"),
    (("--model-control-mode=explicit", "--load-model=a", "--load-model", "b"),
     lambda o: o.lifecycle.load_models, ("a", "b")),
    (("--exit-on-error=false",), lambda o: o.exit_on_error, False),
    (("--strict-readiness=FALSE",), lambda o: o.lifecycle.strict_readiness, False),
    (("--strict-model-config=true",), lambda o: o.lifecycle.complete_configs, True),
    (("--strict-model-config=false",), lambda o: o.lifecycle.complete_configs, False),
    (("--disable-auto-complete-config",), lambda o: o.lifecycle.complete_configs, True),
    (("--model-load-thread-count=9",), lambda o: o.lifecycle.load_threads, 9),
    (("--model-namespacing=1",), lambda o: o.lifecycle.namespacing, True),
    (("--exit-timeout-secs=0",), lambda o: o.limits.drain_timeout, 0.0),
    (("--http-max-input-size=1000",), lambda o: o.limits.max_body_size, 1000),
    (("--response-cache-byte-size=1048576",), lambda o: o.lifecycle.response_cache, LocalOptions(1 << 20)),
    (("--response-cache-byte-size=0",), lambda o: o.lifecycle.response_cache, None),
    (("--rate-limit=EXECUTION_COUNT", "--rate-limit-resource=a:1"),
     lambda o: o.lifecycle.rate_limit, ("a:1",)),
    (("--rate-limit-resource=a:1",), lambda o: o.lifecycle.rate_limit, None),
    (("--trace-file=t", "--trace-level=MAX", "--trace-rate=2", "--trace-count=3", "--trace-log-frequency=4"),
     lambda o: (o.trace.file, o.trace.levels, o.trace.rate, o.trace.count, o.trace.log_frequency),
     (Path("t"), ("TIMESTAMPS",), 2, 3, 4)),
    (("--grpc-use-ssl=1", "--grpc-server-cert=c", "--grpc-server-key=k", "--grpc-root-cert=r"),
     lambda o: (o.tls_grpc_only, o.tls and o.tls.client_ca), (True, None)),
    (("--grpc-use-ssl-mutual=1", "--grpc-server-cert=c", "--grpc-server-key=k", "--grpc-root-cert=r"),
     lambda o: (o.tls_grpc_only, o.tls and o.tls.only_certified), (True, True)),
    (("--grpc-server-cert=c", "--grpc-server-key=k"), lambda o: o.tls, None),
    (("--memory-budget", "1GiB", "--auth=keys.toml"),
     lambda o: (o.lifecycle.memory_budget, o.auth), (1 << 30, Path("keys.toml"))),
    (("--allow-client-shm=false",), lambda o: o.allow_client_shm, False),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "field", "expected"), CASES)
def test_an_option_of_triton_sets_what_the_table_says(
    arguments: tuple[str, ...], field: Callable[[ServerOptions], Any], expected: Any
) -> None:
    assert field(options(*arguments)) == expected


@pytest.mark.parametrize(
    "option", [one for one in OPTIONS if one.outcome != "taken"], ids=lambda one: one.name
)
def test_an_option_without_effect_changes_nothing_and_is_told(option: Any) -> None:
    values = ("1", "true", "none", "0:1", "a,cpu-cores=1", "a,b=c")
    for value in values:
        try:
            parsed, translation = read_arguments([REPOSITORY, f"--{option.name}={value}"])
        except click.ClickException:
            continue
        break
    else:
        pytest.fail(f"--{option.name} takes none of {values}")

    assert parsed.options == options()
    told = translation.without_effect if option.outcome == "no effect" else translation.missing
    assert len(told) == 1
    assert told[0].startswith(f"--{option.name} has no effect: ")


@pytest.mark.parametrize(
    ("arguments", "levels"),
    [
        (("--trace-config=level=TIMESTAMPS",), ()),
        (("--trace-level=TIMESTAMPS",), ()),
        (("--trace-config=level=TIMESTAMPS", "--trace-config=mode=opentelemetry"), ("TIMESTAMPS",)),
        (("--trace-config=level=TIMESTAMPS", "--trace-config=triton,file=t"), ("TIMESTAMPS",)),
    ],
)
def test_a_trace_level_without_a_destination_is_told_and_dropped(
    arguments: tuple[str, ...], levels: tuple[str, ...]
) -> None:
    parsed, translation = read_arguments([REPOSITORY, *arguments])

    assert parsed.options.trace.levels == levels
    assert len(translation.missing) == (not levels)


@pytest.mark.parametrize(
    ("settings", "expected", "ignored"),
    [
        (("summary_latencies=true", "summary_latencies=false"), MetricsConfig(summaries=True), 0),
        (("counter_latencies=false", "counter_latencies=true"), MetricsConfig(counters=False), 0),
        (("histogram_latencies=false",), MetricsConfig(histograms=False), 0),
        (("summary_latencies=TRUE", "counter_latencies=0"), MetricsConfig(), 2),
        (("foo=bar",), MetricsConfig(), 1),
        (("summary_quantiles=0.5:0.05,0.75,a:b,0.25:0",), MetricsConfig(quantiles=(0.5, 0.25)), 2),
        (("summary_quantiles=0.5",), MetricsConfig(), 1),
    ],
)
def test_a_metrics_setting_counts_where_triton_obeys_it_and_is_told_where_not(
    settings: tuple[str, ...], expected: MetricsConfig, ignored: int
) -> None:
    given = [f"--metrics-config={setting}" for setting in settings]

    parsed, translation = read_arguments([REPOSITORY, *given])

    assert parsed.options.metrics == expected
    assert len(translation.missing) == ignored


def test_a_table_aligns_cells_with_several_lines() -> None:
    assert render(("Model", "Status"), [("a", "READY"), ("bcd", "FAILED:\nno memory")]).splitlines() == [
        "+-------+-----------+",
        "| Model | Status    |",
        "+-------+-----------+",
        "| a     | READY     |",
        "| bcd   | FAILED:   |",
        "|       | no memory |",
        "+-------+-----------+",
    ]


def test_the_entry_point_can_be_linked_as_tritonserver(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("backline-tritonserver")
    if not program.exists():
        pytest.skip("backline-tritonserver is not installed: reinstall the package")
    link = tmp_path / "tritonserver"
    link.symlink_to(program)

    done = subprocess.run([link, "--bogus"], capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 1
    assert done.stderr.startswith(f"{link}: unrecognized option '--bogus'")


def test_a_misspelt_option_gets_a_suggestion() -> None:
    with pytest.raises(
        click.ClickException, match="unrecognized option '--http-prot=80'; did you mean --http-port"
    ):
        options("--http-prot=80")


def test_the_help_lists_every_option() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backline", "tritonserver", "--help"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert [option.name for option in OPTIONS if f"--{option.name}" not in done.stdout] == []


def test_a_server_without_ports_runs_until_it_is_stopped(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    closed = ("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false")

    with tritonserver(tmp_path / "models", tmp_path / "log", *closed) as server:
        server.wait_started()
        assert server.stop() == 0


def test_two_servers_share_ports_that_they_reuse(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    http, grpc = free_ports(2)
    shared = (f"--http-port={http}", f"--grpc-port={grpc}", "--reuse-http-port=1", "--reuse-grpc-port=1")

    with (
        tritonserver(tmp_path / "models", tmp_path / "one", *shared, "--allow-metrics=0") as one,
        tritonserver(tmp_path / "models", tmp_path / "two", *shared, "--allow-metrics=0") as two,
    ):
        one.wait_started()
        two.wait_started()
        assert one.stop() == 0
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/ready") as answer:
            assert answer.status == 200
        assert two.stop() == 0


def test_everybody_may_load_models_under_any_name_but_no_page_may(tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    (http,) = free_ports(1)
    arguments = (
        f"--http-port={http}",
        "--model-control-mode=explicit",
        "--allow-grpc=0",
        "--allow-metrics=0",
    )
    with tritonserver(tmp_path / "models", tmp_path / "log", *arguments) as server:
        server.wait_started()
        assert b"200" in _load(http, "triton.example.com")
        assert b"403" in _load(http, "triton.example.com", "Origin: http://triton.example.com")
        server.wait_for("] \"successfully loaded 'add1' version 1\"")
        with urllib.request.urlopen(f"http://127.0.0.1:{http}/v2") as answer:
            assert b'"name":"triton"' in answer.read()


def _load(port: int, host: str, *fields: str) -> bytes:
    import socket

    lines = ["POST /v2/repository/models/add1/load HTTP/1.1", f"Host: {host}", "Connection: close", *fields]
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(("\r\n".join([*lines, "Content-Length: 2", "", "{}"])).encode())
        return b"".join(iter(lambda: connection.recv(65536), b"")).partition(b"\r\n")[0]


def test_without_a_repository_a_server_that_must_not_exit_is_not_live(tmp_path: Path) -> None:
    http, grpc, metrics = free_ports(3)
    ports = (f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}")
    command = [sys.executable, "-m", "backline", "tritonserver", "--exit-on-error=false", *ports]
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: b"Started HTTPService" in (tmp_path / "log").read_bytes())
        for check in ("live", "ready"):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                urllib.request.urlopen(f"http://127.0.0.1:{http}/v2/health/{check}", timeout=10)
    finally:
        process.terminate()
        process.wait(30)
    assert b"Invalid argument: --model-repository must be specified" in (tmp_path / "log").read_bytes()


def test_what_failed_at_the_start_of_a_server_that_must_not_exit_is_said_in_tritons_words(
    tmp_path: Path,
) -> None:
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "1" / "model.onnx").write_bytes(b"no model")
    missing = f"--model-repository={tmp_path}/missing"
    with tritonserver(tmp_path / "models", tmp_path / "log", "--exit-on-error=false", missing) as server:
        server.wait_started()
        until(lambda: "failed to load all models" in server.output)
    assert f"Internal: failed to stat file {tmp_path}/missing" in server.output
