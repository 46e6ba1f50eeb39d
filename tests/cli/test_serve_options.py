"""The options of `backline serve` and what they set."""

from __future__ import annotations

from functools import reduce
from pathlib import Path
from typing import Any

import click
import pytest

from backline.cli.serve import command
from backline.cli.serve.engine import RayOptions, engine_options
from backline.cli.serve.options import server_options
from backline.lifecycle.options import LifecycleOptions
from backline.server import ServerOptions
from backline.wire.tls import TlsFiles

EXPLICIT = ("--model-control-mode", "explicit")
LIMITED = ("--rate-limit", "execution_count")
TLS = ("--ssl-certificate", "c.pem", "--ssl-key", "k.pem")


def read(*arguments: str) -> ServerOptions:
    @click.command()
    @server_options
    def echo(options: ServerOptions) -> ServerOptions:
        return options

    options = echo.main([*arguments], standalone_mode=False)
    assert isinstance(options, ServerOptions)
    return options


#: Arguments, the path of the field they set, and its value.
CASES: list[tuple[tuple[str, ...], str, Any]] = [
    (("one", "two"), "repositories", ("one", "two")),
    (("one", "--model-repository", "two"), "repositories", ("one", "two")),
    (("--model-control-mode", "poll"), "lifecycle.mode", "poll"),
    (("--target-in-flight", "6"), "target_in_flight", 6.0),
    ((*EXPLICIT, "--load-model", "a", "--load-model", "b"), "lifecycle.load_models", ("a", "b")),
    (("--repository-poll-secs", "7"), "lifecycle.poll_seconds", 7.0),
    (("--model-namespacing",), "lifecycle.namespacing", True),
    (("--model-config-name", "small"), "config_name", "small"),
    (("--disable-auto-complete-config",), "lifecycle.complete_configs", True),
    (("--model-name", "add1"), "model_name", "add1"),
    (("--no-strict-readiness",), "lifecycle.strict_readiness", False),
    (("--require-all-versions",), "lifecycle.require_all_versions", True),
    (("--trust-pickle",), "lifecycle.trust_pickle", True),
    (
        ("--trust-pickle-model", "forest", "--trust-pickle-model", "risk-*"),
        "lifecycle.trust_pickle_models",
        ("forest", "risk-*"),
    ),
    (("--trust-skops-type", "a.B"), "lifecycle.trust_skops_types", ("a.B",)),
    (("--trust-remote-code",), "lifecycle.trust_remote_code", True),
    (("--strict-devices",), "lifecycle.strict_devices", True),
    (("--exit-on-error",), "exit_on_error", True),
    (("--await-repositories",), "lifecycle.await_repositories", True),
    (("--model-load-thread-count", "7"), "lifecycle.load_threads", 7),
    (("--model-load-retry-count", "7"), "lifecycle.load_retries", 7),
    (("--isolate", "remote"), "lifecycle.isolate", "remote"),
    (("--load-timeout-secs", "7"), "lifecycle.load_timeout_seconds", 7.0),
    (("--load-memory-limit", "2GiB"), "lifecycle.load_memory_limit", 2 << 30),
    (("--drain-timeout-secs", "7"), "lifecycle.drain_seconds", 7.0),
    (("--keep-previous-secs", "0"), "lifecycle.keep_previous_seconds", 0.0),
    (("--memory-budget", "2GiB"), "lifecycle.memory_budget", 2 << 30),
    (("--gpu-memory-budget", "0:2GiB"), "lifecycle.gpu_memory_budget", ("0:2GiB",)),
    (("--max-queued-requests", "7"), "lifecycle.max_queued_requests", 7),
    (("--cache-config", "local,size=64MiB"), "lifecycle.response_cache.size", 64 << 20),
    (("--compute-threads", "7"), "lifecycle.compute_threads", 7),
    (("--busy-poll-usecs", "7"), "busy_poll_usecs", 7),
    (LIMITED, "lifecycle.rate_limit", ()),
    ((*LIMITED, "--rate-limit-resource", "memory:4"), "lifecycle.rate_limit", ("memory:4",)),
    (("--labels", "repository"), "lifecycle.labels", "repository"),
    (("--state-dir", "there"), "lifecycle.state_folder", Path("there")),
    (("--cache-dir", "there"), "lifecycle.cache_folder", Path("there")),
    (("--id", "edge"), "name", "edge"),
    (("--host", "::"), "host", "::"),
    (("--grpc-address", "::1"), "grpc_host", "::1"),
    (("--metrics-address", "::1"), "metrics_host", "::1"),
    (("--reuse-http-port",), "reuse_http_port", True),
    (("--reuse-grpc-port",), "reuse_grpc_port", True),
    (("--reuse-metrics-port",), "reuse_metrics_port", True),
    (("--no-http",), "http_port", None),
    ((*TLS, "--ssl-grpc-only"), "tls_grpc_only", True),
    (
        ("--http-restricted-api", "health:k=v", "--http-restricted-api", "trace:k=v"),
        "http_restricted_apis",
        ("health:k=v", "trace:k=v"),
    ),
    (("--grpc-restricted-protocol", "health:k=v"), "grpc_restricted_protocols", ("health:k=v",)),
    (("--http-header-forward-pattern", "x-.*"), "http_header_forward_pattern", "x-.*"),
    (("--grpc-header-forward-pattern", "x-.*"), "grpc_header_forward_pattern", "x-.*"),
    (("--exit-timeout-secs", "0"), "limits.drain_timeout", 0.0),
    (("--allowed-host", "*"), "allowed_hosts", ("*",)),
    (("--http-address", "::"), "host", "::"),
    (("--http-port", "7"), "http_port", 7),
    (("--grpc-port", "7"), "grpc_port", 7),
    (("--metrics-port", "7"), "metrics_port", 7),
    (("--no-grpc",), "grpc_port", None),
    (("--no-metrics",), "metrics_port", None),
    (("--no-console",), "console", False),
    (("--dialects", "plain, openapi"), "dialects", ("plain", "openapi")),
    (("--dialects", "none"), "dialects", ()),
    (("--default-model", "words"), "default_model", "words"),
    (("--unix-socket", "there"), "unix_socket", Path("there")),
    (TLS, "tls", TlsFiles(Path("c.pem"), Path("k.pem"), None)),
    ((*TLS, "--ssl-client-ca", "a.pem"), "tls", TlsFiles(Path("c.pem"), Path("k.pem"), Path("a.pem"))),
    (
        (*TLS, "--ssl-client-ca", "a.pem", "--ssl-client-auth", "optional", "--auth", "auth.toml"),
        "tls.client_auth",
        "optional",
    ),
    ((*TLS, "--metrics-plain"), "metrics_plain", True),
    (("--http-max-input-size", "7"), "limits.max_body_size", 7),
    (("--max-header-size", "7"), "limits.max_header_size", 7),
    (("--max-connections", "7"), "limits.max_connections", 7),
    (("--max-concurrent-requests", "7"), "limits.max_concurrent_requests", 7),
    (("--header-timeout", "7"), "limits.header_timeout", 7.0),
    (("--progress-timeout", "7"), "limits.progress_timeout", 7.0),
    (("--idle-timeout", "7"), "limits.idle_timeout", 7.0),
    (("--stream-idle-timeout", "7"), "limits.stream_idle_timeout", 7.0),
    (("--max-streams", "7"), "limits.max_streams", 7),
    (("--max-peer-share", "0.5"), "limits.max_peer_share", 0.5),
    (("--exit-timeout-secs", "7"), "limits.drain_timeout", 7.0),
    (("--auth", "auth.toml"), "auth", Path("auth.toml")),
    (("--insecure-open",), "insecure_open", True),
    (("--cors-origin", "HTTP://localhost:80"), "cors_origins", ("http://localhost",)),
    (("--allowed-host", "*.Example.org"), "allowed_hosts", ("*.example.org",)),
    (("--not-ready-status", "400"), "not_ready_status", 400),
    (("--allow-client-shm", "true"), "allow_client_shm", True),
    (("--trace-config", "rate=7"), "trace.rate", 7),
    (("--metrics-config", "summary_latencies=true"), "metrics.summaries", True),
]


@pytest.mark.parametrize(("arguments", "path", "value"), CASES, ids=[" ".join(case[0]) for case in CASES])
def test_an_option_sets_its_field(arguments: tuple[str, ...], path: str, value: Any) -> None:
    def at(options: ServerOptions) -> Any:
        return reduce(getattr, path.split("."), options)

    assert at(read(*arguments)) == value


def read_engine(*arguments: str) -> RayOptions | None:
    @click.command()
    @engine_options
    def echo(engine: RayOptions | None) -> RayOptions | None:
        return engine

    engine = echo.main([*arguments], standalone_mode=False)
    assert isinstance(engine, RayOptions | None)
    return engine


#: Arguments after `--engine ray`, the field of RayOptions they set, and its value.
RAY_CASES: list[tuple[tuple[str, ...], str, Any]] = [
    (("--ray-name", "notes"), "name", "notes"),
    (("--ray-address", "head:6379"), "address", "head:6379"),
    (("--ray-replicas", "2"), "replicas", 2),
    (("--ray-max-replicas", "8"), "most", 8),
    (("--ray-actor-options", '{"num_gpus": 1}'), "actor_options", {"num_gpus": 1}),
    (("--ray-revision", "second"), "revision", "second"),
    (("--ray-shards",), "shards", True),
    (("--ray-keep-sequences",), "keep_sequences", True),
]


@pytest.mark.parametrize(
    ("arguments", "field", "value"), RAY_CASES, ids=[" ".join(case[0]) for case in RAY_CASES]
)
def test_an_option_of_ray_sets_its_field(arguments: tuple[str, ...], field: str, value: Any) -> None:
    assert getattr(read_engine("--engine", "ray", *arguments), field) == value
    assert read_engine(*arguments) is None


@pytest.mark.parametrize("text", ["num_gpus=1", "[1]"])
def test_options_of_an_actor_that_are_no_json_object_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter, match="JSON"):
        read_engine("--engine", "ray", "--ray-actor-options", text)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--ssl-key", "k.pem"), "both --ssl-certificate and --ssl-key"),
        ((*TLS, "--ssl-client-auth", "optional"), "needs --ssl-client-ca"),
        ((*TLS, "--ssl-client-ca", "a.pem", "--ssl-client-auth", "optional"), "needs --auth"),
        (("--metrics-plain",), "no effect without --ssl-certificate"),
        ((*TLS, "--metrics-plain", "--no-metrics"), "no effect without a metrics port"),
    ],
)
def test_options_that_need_another_are_refused_without_it(arguments: tuple[str, ...], told: str) -> None:
    with pytest.raises(click.UsageError, match=told):
        read(*arguments)


def test_without_options_everything_is_the_default() -> None:
    assert read("models") == ServerOptions(("models",))


def test_every_option_has_a_case() -> None:
    tried = {
        argument
        for arguments, _, _ in CASES + RAY_CASES
        for argument in arguments
        if argument.startswith("--")
    }
    options = {
        param.opts[0]
        for param in command.params
        if isinstance(param, click.Option) and not param.opts[0].startswith("--log-")
    }
    assert options - tried == {"--debug", "--strict-readiness", "--engine"}


def test_every_field_is_set_by_options_or_is_for_programs() -> None:
    filled = {param.name for param in command.params}
    left = {name for kind in (ServerOptions, LifecycleOptions) for name in kind.__struct_fields__} - filled
    assert left == {
        "lifecycle",
        "limits",
        "tls",
        "debugged_model",
        "state_store",
        "unknown_sequence_advice",
        "fair_queues",
        "default_queue",
        "frame_ancestors",
        "onnx_as_triton",
        "control_as_triton",
        "own_models",
        "hold_requests",
        "hold_backlog",
    }


def test_a_kubernetes_service_called_backline_grpc_does_not_set_a_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BACKLINE_GRPC_PORT", "tcp://10.0.0.1:8001")
    monkeypatch.setenv("BACKLINE_HTTP_PORT", "9000")

    options = read("models")

    assert (options.grpc_port, options.http_port) == (8001, 9000)


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({"PORT": "8080", "K_SERVICE": "notes"}, 8080),
        ({"PORT": "8080"}, 8000),  # any program may call a variable PORT
        ({"PORT": "8080", "K_SERVICE": "notes", "BACKLINE_HTTP_PORT": "9000"}, 9000),
    ],
    ids=["serverless", "elsewhere", "chosen"],
)
def test_a_serverless_platform_sets_the_http_port(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], port: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert read("models").http_port == port
