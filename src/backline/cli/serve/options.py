"""The options of `backline serve`, each with the field of ServerOptions, LifecycleOptions or Limits that it fills."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from backline.access.browsers import parse_host_name, parse_origin
from backline.cli.serve.option import Decorator, decorated, option
from backline.engine.byte_size import parse_bytes
from backline.engine.errors import InvalidArgument
from backline.lifecycle.options import ControlMode, LifecycleOptions
from backline.observe.tracing.config import TraceConfig, parse_trace_config
from backline.server import ServerOptions
from backline.wire.limits import Limits
from backline.wire.tls import TlsFiles

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions

_DEFAULTS = {
    field.name: field.default for kind in (ServerOptions, LifecycleOptions, Limits) for field in fields(kind)
}


def _fills(name: str, field: str, *alternatives: str, **settings: Any) -> Decorator:
    """An option that fills a field and has its default."""
    default = _DEFAULTS[field]
    return option(
        name, *alternatives, field, **{"default": None if default is MISSING else default, **settings}
    )


def _flag(name: str, field: str, text: str) -> Decorator:
    return _fills(name, field, is_flag=True, help=text)


def _port(field: str, what: str) -> Decorator:
    name = f"--{field.replace('_', '-')}"
    return _fills(
        name, field, type=click.IntRange(0, 65535), help=f"Port of {what}; 0 takes any that is free."
    )


def _seconds(name: str, field: str, text: str) -> Decorator:
    return _fills(name, field, type=click.FloatRange(0, min_open=True), metavar="SECONDS", help=text)


def _count(name: str, field: str, text: str, *, least: int = 1, metavar: str | None = None) -> Decorator:
    return _fills(name, field, type=click.IntRange(least), metavar=metavar, help=text)


def _path(name: str, field: str, text: str) -> Decorator:
    return _fills(name, field, type=click.Path(path_type=Path), help=text)


class _Size(click.ParamType):
    """A number of bytes, with a unit if wanted."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _response_cache(
    context: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> CacheOptions | None:
    if not texts:
        return None
    from backline.schedule.cache.config import parse_cache_config

    try:
        return parse_cache_config(texts)
    except InvalidArgument as error:
        raise click.UsageError(error.message) from None


def _trace(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> TraceConfig:
    try:
        return parse_trace_config(texts)
    except InvalidArgument as error:
        raise click.UsageError(f"--trace-config: {error.message}") from None


def _parsed(
    parse: Callable[[str], str],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[str, ...]]:
    """A callback that parses each text of an option that may be repeated."""

    def convert(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
        try:
            return tuple(map(parse, texts))
        except InvalidArgument as error:
            raise click.BadParameter(error.message) from None

    return convert


_OPTIONS: tuple[Decorator, ...] = (
    click.argument("repositories", nargs=-1, metavar="REPO..."),
    option("--model-repository", multiple=True, metavar="REPO", help="A further repository."),
    # Which models are served, and how they come and go.
    _fills(
        "--model-control-mode",
        "mode",
        type=click.Choice(get_args(ControlMode)),
        help="Who changes what is served: nobody, the repositories whenever they change, or requests.",
    ),
    _fills(
        "--load-model",
        "load_models",
        multiple=True,
        metavar="MODEL",
        help="In mode explicit, a model to load at the start; * for all.",
    ),
    _seconds(
        "--repository-poll-secs",
        "poll_seconds",
        "In mode poll, between two looks at a repository that cannot tell when it changes.",
    ),
    _flag(
        "--model-namespacing",
        "namespacing",
        "Call models <repository>.<model>, so that repositories may hold the same names.",
    ),
    _fills(
        "--model-config-name",
        "config_name",
        metavar="NAME",
        help="Read configs/NAME.pbtxt of models that have it.",
    ),
    _flag(
        "--disable-auto-complete-config",
        "complete_configs",
        "Refuse models whose configuration does not name all inputs and outputs.",
    ),
    _fills(
        "--model-name",
        "model_name",
        metavar="NAME",
        help="What the model is called, where the repository is a single model: its file or its folder.",
    ),
    _fills(
        "--strict-readiness/--no-strict-readiness",
        "strict_readiness",
        help="Ready only when all models are, or as soon as they were tried.",
    ),
    _flag(
        "--trust-pickle",
        "trust_pickle",
        "Load models that can execute code when they are loaded: pickles, machine code.",
    ),
    _flag(
        "--trust-remote-code",
        "trust_remote_code",
        "Run code (Python, TorchScript, torch.export) of remote repositories and of loads that bring files along.",
    ),
    _flag(
        "--strict-devices",
        "strict_devices",
        "Refuse models that ask for a GPU which cannot be used, instead of running them on the CPU.",
    ),
    _flag(
        "--exit-on-error", "exit_on_error", "End when a model cannot be loaded at the start, as Triton does."
    ),
    _count("--model-load-thread-count", "load_threads", "Models that are loaded at the same time."),
    _count(
        "--model-load-retry-count",
        "load_retries",
        "Further attempts after a failed load, with pauses.",
        least=0,
    ),
    _seconds("--drain-timeout-secs", "drain_seconds", "Given to the requests of a version that is unloaded."),
    # What they may take.
    _fills(
        "--memory-budget",
        "memory_budget",
        type=_Size(),
        metavar="SIZE",
        help="Resident memory of the server, at most, as 2GiB: idle models are unloaded, and loaded again on request.",
    ),
    _count(
        "--max-queued-requests",
        "max_queued_requests",
        "Requests that may wait in the queues of all models together; further ones are refused with 503, unless their model is idle.",
        metavar="COUNT",
    ),
    _fills(
        "--cache-config",
        "response_cache",
        multiple=True,
        callback=_response_cache,
        metavar="CACHE",
        help="Keeps answers of models with response_cache, as local,size=64MiB or redis,host=HOST,port=6379; may be spread over several.",
    ),
    _count(
        "--compute-threads",
        "compute_threads",
        "Threads that compute at once, of all models in this process; default: as many as there are cores; 0: any number.",
        least=0,
        metavar="COUNT",
    ),
    option(
        "--rate-limit",
        type=click.Choice(("off", "execution_count")),
        default="off",
        help="execution_count: instances run when they have the resources of their rate_limiter, and by their priorities.",
    ),
    option(
        "--rate-limit-resource",
        multiple=True,
        metavar="NAME:COUNT[:DEVICE]",
        help="Of a resource there are so many; without any, of each as many as the instance takes that takes the most.",
    ),
    # Where things are kept.
    _path(
        "--state-dir",
        "state_folder",
        "Keeps labels, the audit log and recorded requests; default: of its own for the repositories.",
    ),
    _path(
        "--cache-dir",
        "cache_folder",
        "Keeps files of remote repositories and environments of models; default: in the user's cache.",
    ),
    # Where the server listens.
    _fills(
        "--host", "host", "--http-address", help="Address to listen on; 0.0.0.0 or :: for all of the machine."
    ),
    _port("http_port", "HTTP"),
    _port("grpc_port", "gRPC"),
    _port("metrics_port", "the Prometheus metrics"),
    option("--no-grpc", is_flag=True, help="Do not open the gRPC port."),
    option("--no-metrics", is_flag=True, help="Do not open the metrics port; /metrics of the others stays."),
    _path("--unix-socket", "unix_socket", "Listen on a Unix socket too."),
    option(
        "--ssl-certificate",
        type=click.Path(path_type=Path),
        help="PEM file with the certificate: all ports speak TLS.",
    ),
    option("--ssl-key", type=click.Path(path_type=Path), help="PEM file with its key."),
    option(
        "--ssl-client-ca",
        type=click.Path(path_type=Path),
        help="PEM file: only clients with a certificate of this authority.",
    ),
    # What clients may do.
    _count(
        "--http-max-input-size",
        "max_body_size",
        "Largest request body or gRPC message, in bytes, before and after inflating.",
    ),
    _count("--max-header-size", "max_header_size", "Largest head of a request, in bytes."),
    _count("--max-connections", "max_connections", "Open connections."),
    _count(
        "--max-concurrent-requests",
        "max_concurrent_requests",
        "Requests in flight; further ones are refused with 503.",
    ),
    _count(
        "--max-streams",
        "max_streams",
        "Streaming gRPC calls that are open; further ones are refused with RESOURCE_EXHAUSTED.",
    ),
    _fills(
        "--max-peer-share",
        "max_peer_share",
        type=click.FloatRange(0, 1, min_open=True),
        metavar="SHARE",
        help="Of connections, requests and streams, what one client address may hold; 1 where a proxy stands for all clients.",
    ),
    _seconds("--header-timeout", "header_timeout", "Until the head of a request is complete."),
    _seconds(
        "--progress-timeout", "progress_timeout", "Without any byte while a body comes or an answer goes."
    ),
    _seconds("--idle-timeout", "idle_timeout", "On a connection without a request."),
    _seconds(
        "--stream-idle-timeout",
        "stream_idle_timeout",
        "On a streaming gRPC call without a message in either direction.",
    ),
    _seconds("--exit-timeout-secs", "drain_timeout", "Given to requests in flight when the server stops."),
    _fills(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        callback=_parsed(parse_origin),
        metavar="ORIGIN",
        help="Let web pages of this origin use the server, as https://console.example.org. May be repeated.",
    ),
    _fills(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        callback=_parsed(parse_host_name),
        metavar="NAME",
        help="A further name that clients reach the server by, or *.example.org for all below. May be repeated.",
    ),
    _fills(
        "--not-ready-status",
        "not_ready_status",
        type=click.Choice(("503", "400")),
        default="503",
        callback=lambda context, parameter, status: int(status),
        help="HTTP status of a health question whose answer is no; Triton's is 400.",
    ),
    _fills(
        "--allow-client-shm",
        "allow_client_shm",
        type=bool,
        metavar="true|false",
        help="Let clients of this machine register shared memory for inputs and outputs (Linux).",
    ),
    _fills(
        "--trace-config",
        "trace",
        multiple=True,
        callback=_trace,
        metavar="[MODE,]SETTING=VALUE",
        help="Traces requests as Triton: level, rate, count, mode=opentelemetry; triton,file=PATH; opentelemetry,url=URL. May be repeated.",
    ),
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of a server, and its function their meaning as `options`, a ServerOptions.

    Its repositories may be none. Raises UsageError for options that contradict each other.
    """

    @wraps(command)
    def with_options(
        *,
        repositories: tuple[str, ...],
        model_repository: tuple[str, ...],
        rate_limit: str,
        rate_limit_resource: tuple[str, ...],
        no_grpc: bool,
        no_metrics: bool,
        ssl_certificate: Path | None,
        ssl_key: Path | None,
        ssl_client_ca: Path | None,
        **given: Any,
    ) -> Any:
        given["repositories"] = (*repositories, *model_repository)
        given["rate_limit"] = _resources(rate_limit, rate_limit_resource)
        given["tls"] = _tls(ssl_certificate, ssl_key, ssl_client_ca)
        given["grpc_port"] = None if no_grpc else given["grpc_port"]
        given["metrics_port"] = None if no_metrics else given["metrics_port"]
        given["lifecycle"] = _filled(LifecycleOptions, given)
        given["limits"] = _filled(Limits, given)
        options: ServerOptions = _filled(ServerOptions, given)
        _check_ports(options)
        if options.lifecycle.load_models and options.lifecycle.mode != "explicit":
            raise click.UsageError(
                "--load-model needs --model-control-mode explicit: in the other modes all models are loaded"
            )
        return command(options=options, **given)

    return decorated(with_options, _OPTIONS)


def _filled(kind: Any, given: dict[str, Any]) -> Any:
    """The dataclass with its fields of what was given, which are taken out of that."""
    return kind(**{field.name: given.pop(field.name) for field in fields(kind) if field.name in given})


def _check_ports(options: ServerOptions) -> None:
    taken: dict[int, str] = {}
    for name, port in (
        ("--http-port", options.http_port),
        ("--grpc-port", options.grpc_port),
        ("--metrics-port", options.metrics_port),
    ):
        if port and port in taken:
            raise click.UsageError(
                f"{name} and {taken[port]} are both {port}. One port answers every protocol:"
                " leave one out (--no-grpc, --no-metrics) or choose another"
            )
        if port:
            taken[port] = name


def _resources(rate_limit: str, resources: Sequence[str]) -> tuple[str, ...] | None:
    if rate_limit == "off":
        if resources:
            raise click.UsageError(
                "--rate-limit-resource needs --rate-limit execution_count: without it nothing takes resources"
            )
        return None
    from backline.schedule.rate_limit.limits import parse_resources

    try:
        parse_resources(tuple(resources))
    except InvalidArgument as error:
        raise click.UsageError(f"--rate-limit-resource: {error.message}") from None
    return tuple(resources)


def _tls(certificate: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("TLS needs both --ssl-certificate and --ssl-key")
    return TlsFiles(certificate, key, client_ca)
