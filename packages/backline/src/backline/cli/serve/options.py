"""Defines the options of `backline serve`, and the fields that they set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from backline.access.browsers import parse_allowed_host, parse_origin
from backline.access.restricted import GRPC_PREFIX, Api, parse_restrictions
from backline.cli.numbers import Number
from backline.cli.options import (
    Decorator,
    cache_folder_option,
    option,
    state_folder_option,
    trust_code_option,
    trust_pickle_option,
    trust_skops_option,
)
from backline.cli.serve.fields import (
    Size,
    count,
    decorated,
    fills,
    flag,
    parsed,
    path,
    port,
    seconds,
)
from backline.dialects.forwarding import ForwardPattern
from backline.lifecycle.options import ControlMode, IsolateMode, LifecycleOptions
from backline.observe.metrics_config import MetricsConfig, parse_metrics_config
from backline.observe.tracing.settings import TraceConfig, parse_trace_config
from backline.server import OpenPort, ServerOptions
from backline.wire.limits import Limits
from backline.wire.tls import ClientAuth, TlsFiles
from backline_client.values.errors import InvalidArgument

if TYPE_CHECKING:
    from backline.schedule.cache.config import CacheOptions


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


def _dialects(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("none",) else names


def _restrictions(
    context: click.Context, parameter: click.Parameter, texts: Sequence[str]
) -> tuple[str, ...]:
    try:
        parse_restrictions(parameter.opts[0], texts)
    except InvalidArgument as error:
        raise click.UsageError(error.message) from None
    return tuple(texts)


def _pattern(context: click.Context, parameter: click.Parameter, text: str) -> str:
    try:
        ForwardPattern(text)
    except InvalidArgument as error:
        raise click.BadParameter(error.message) from None
    return text


def _trace(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> TraceConfig:
    try:
        return parse_trace_config(texts)
    except InvalidArgument as error:
        raise click.UsageError(f"--trace-config: {error.message}") from None


def _metrics(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> MetricsConfig:
    try:
        return parse_metrics_config(texts)
    except InvalidArgument as error:
        raise click.UsageError(f"--metrics-config: {error.message}") from None


_OPTIONS: tuple[Decorator, ...] = (
    click.argument("repositories", nargs=-1, metavar="REPO..."),
    option(
        "--model-repository",
        multiple=True,
        metavar="REPO",
        help="A folder or URL, in addition to the arguments; repeatable.",
    ),
    fills(
        "--model-control-mode",
        "mode",
        type=click.Choice(get_args(ControlMode)),
        help="What may change the served models: nothing, changes in the repositories, or requests.",
    ),
    fills(
        "--load-model",
        "load_models",
        multiple=True,
        metavar="MODEL",
        help="In mode explicit, a model to load at start, * for all; repeatable.",
    ),
    seconds(
        "--repository-poll-secs",
        "poll_seconds",
        "Seconds between scans of a repository that cannot report changes, in mode poll.",
    ),
    flag(
        "--model-namespacing",
        "namespacing",
        "Serve models that are in several repositories as <repository>.<model>, instead of refusing them.",
    ),
    fills(
        "--model-config-name",
        "config_name",
        metavar="NAME",
        help="For models that have a file configs/NAME.pbtxt, use it as the configuration.",
    ),
    flag(
        "--disable-auto-complete-config",
        "complete_configs",
        "Refuse models whose configuration does not name all inputs and outputs.",
    ),
    fills(
        "--model-name",
        "model_name",
        metavar="NAME",
        help="The model's name if the repository is a single model: a file, a folder or a URL.",
    ),
    fills(
        "--strict-readiness/--no-strict-readiness",
        "strict_readiness",
        help="Report ready only when all models are ready; with --no-strict-readiness, as soon as every load"
        " has been attempted.",
    ),
    flag(
        "--require-all-versions",
        "require_all_versions",
        "Serve no version of a model while one of them cannot be loaded, as Triton does.",
    ),
    trust_pickle_option,
    fills(
        "--trust-pickle-model",
        "trust_pickle_models",
        multiple=True,
        metavar="PATTERN",
        help="Like --trust-pickle, but only for models with this name, such as forest or risk-*; repeatable.",
    ),
    trust_skops_option,
    trust_code_option,
    flag(
        "--strict-devices",
        "strict_devices",
        "Refuse models that ask for an unavailable GPU instead of running them on the CPU.",
    ),
    flag("--exit-on-error", "exit_on_error", "Exit when a model fails to load at start, as Triton does."),
    flag(
        "--await-repositories",
        "await_repositories",
        "Start, without being ready, if a repository does not exist yet, and load its models once it does."
        " --exit-on-error=false implies it.",
    ),
    count(
        "--model-load-thread-count",
        "load_threads",
        "Maximum number of models that are loaded at the same time.",
    ),
    count(
        "--model-load-retry-count",
        "load_retries",
        "Number of retries after a failed load, with pauses between them.",
        least=0,
    ),
    fills(
        "--isolate",
        "isolate",
        type=click.Choice(get_args(IsolateMode)),
        help="Which model files are tried in a separate process first, so that a file that crashes its"
        " runtime does not crash the server. always: all files at each load; new: files not tried before;"
        " remote: files not tried before that come from remote repositories or load requests; never: none;"
        " workers: none, but files from remote repositories and load requests run in worker processes.",
    ),
    seconds(
        "--load-timeout-secs",
        "load_timeout_seconds",
        "Seconds after which the trial of a model file, or a load in a worker process (lane process), is"
        " stopped.",
    ),
    fills(
        "--load-memory-limit",
        "load_memory_limit",
        type=Size(),
        metavar="SIZE",
        help="Maximum resident memory of a model's trial in a separate process, and of a worker process with"
        " files from a remote repository or load request; default: 4GiB plus eight times the size of the"
        " files, at most 80% of the free memory.",
    ),
    seconds(
        "--drain-timeout-secs",
        "drain_seconds",
        "Seconds that requests of a version may take to finish when it is unloaded while the server runs; see"
        " --exit-timeout-secs for the server's shutdown.",
    ),
    fills(
        "--keep-previous-secs",
        "keep_previous_seconds",
        type=click.FloatRange(0),
        metavar="SECONDS",
        help="Seconds for which a version stays loaded after a label has moved away from it, so that a"
        " rollback needs no load; 0: unload it immediately.",
    ),
    fills(
        "--memory-budget",
        "memory_budget",
        type=Size(),
        metavar="SIZE",
        help="Maximum memory that the server and its workers may use, such as 2GiB: idle models are"
        " evicted, and loaded again on demand.",
    ),
    fills(
        "--gpu-memory-budget",
        "gpu_memory_budget",
        multiple=True,
        metavar="[GPU:]SIZE",
        help="The same for the memory of every GPU, or of one, such as 0:20GiB; repeatable.",
    ),
    count(
        "--max-queued-requests",
        "max_queued_requests",
        "Limit on queued requests over all models; beyond it requests get 503, unless a free instance takes"
        " them.",
        metavar="COUNT",
    ),
    fills(
        "--cache-config",
        "response_cache",
        multiple=True,
        callback=_response_cache,
        metavar="CACHE",
        help="Enables the response cache: local,size=64MiB or redis,host=HOST,port=6379; repeatable.",
    ),
    count(
        "--compute-threads",
        "compute_threads",
        "Maximum number of threads that compute at the same time for all models in this process; default: as"
        " many as there are cores; 0: no limit.",
        least=0,
        metavar="COUNT",
    ),
    count(
        "--busy-poll-usecs",
        "busy_poll_usecs",
        "Maximum time, in microseconds, for which the server polls for the next request before it sleeps, if"
        " polling is likely to save time; 0: never.",
        least=0,
        metavar="COUNT",
    ),
    option(
        "--rate-limit",
        type=click.Choice(("off", "execution_count")),
        default="off",
        help="execution_count: an instance runs only while it holds the resources of its rate_limiter, which"
        " are granted by priority.",
    ),
    option(
        "--rate-limit-resource",
        multiple=True,
        metavar="NAME:COUNT[:DEVICE]",
        help="Units of a resource; default: as many as the most demanding instance needs; repeatable.",
    ),
    fills(
        "--labels",
        "labels",
        metavar="PLACE",
        help="Where to store labels, so that several servers can share them: repository, a folder,"
        " s3://bucket/prefix or redis://host:6379/0; default: the state folder.",
    ),
    state_folder_option,
    cache_folder_option,
    fills("--id", "name", metavar="NAME", help="The server's name in its metadata."),
    fills(
        "--host",
        "host",
        "--http-address",
        help="Address of all ports; 0.0.0.0 or :: for all addresses of the machine.",
    ),
    fills("--grpc-address", "grpc_host", help="Another address for the gRPC port."),
    fills("--metrics-address", "metrics_host", help="Another address for the metrics port."),
    port("http_port", "HTTP"),
    port("grpc_port", "gRPC"),
    port("metrics_port", "Prometheus metrics"),
    flag(
        "--reuse-http-port",
        "reuse_http_port",
        "Let other servers listen on the HTTP port too; the kernel spreads connections over them.",
    ),
    flag("--reuse-grpc-port", "reuse_grpc_port", "The same for the gRPC port."),
    flag("--reuse-metrics-port", "reuse_metrics_port", "The same for the metrics port."),
    option("--no-http", is_flag=True, help="Do not open the HTTP port; the other ports still speak HTTP."),
    option("--no-grpc", is_flag=True, help="Do not open the gRPC port; the other ports still speak gRPC."),
    option(
        "--no-metrics",
        is_flag=True,
        help="Do not open the metrics port; the other ports still serve /metrics.",
    ),
    fills(
        "--no-console",
        "console",
        is_flag=True,
        default=False,
        callback=lambda _, __, without: not without,
        help="Do not serve the console, a page for browsers at /.",
    ),
    fills(
        "--dialects",
        "dialects",
        callback=_dialects,
        metavar="NAMES",
        help="Serve only these dialects besides the Open Inference Protocol, such as 'plain,console', or"
        " 'none'. [default: all]",
    ),
    fills(
        "--default-model",
        "default_model",
        metavar="NAME",
        help="The model of requests that name none, such as SageMaker's; default: the only model.",
    ),
    path("--unix-socket", "unix_socket", "Also listen on this Unix socket."),
    option(
        "--ssl-certificate",
        type=click.Path(path_type=Path),
        help="PEM file of a certificate; all ports then speak TLS.",
    ),
    option(
        "--ssl-key",
        type=click.Path(path_type=Path),
        help="PEM file with the private key of the certificate.",
    ),
    option(
        "--ssl-client-ca",
        type=click.Path(path_type=Path),
        help="PEM file of a CA; only clients with a certificate that this CA signed are admitted.",
    ),
    option(
        "--ssl-client-auth",
        type=click.Choice(get_args(ClientAuth)),
        help="optional: with --ssl-client-ca, also admit clients without a certificate, such as holders of a"
        " key. Default: required.",
    ),
    flag(
        "--ssl-grpc-only",
        "tls_grpc_only",
        "Only the gRPC port speaks TLS, as with Triton's --grpc-use-ssl.",
    ),
    flag(
        "--metrics-plain",
        "metrics_plain",
        "Open the metrics port without TLS; it then serves only metrics and health checks.",
    ),
    count(
        "--http-max-input-size",
        "max_body_size",
        "Maximum size of a request body or gRPC message in bytes, before and after decompression.",
    ),
    count("--max-header-size", "max_header_size", "Maximum size of a request header in bytes."),
    count("--max-connections", "max_connections", "Maximum number of open connections."),
    count(
        "--max-concurrent-requests",
        "max_concurrent_requests",
        "Maximum number of requests in flight; further requests get 503.",
    ),
    count(
        "--max-streams",
        "max_streams",
        "Maximum number of open streaming gRPC calls, WebSockets and event streams of the console.",
    ),
    fills(
        "--max-peer-share",
        "max_peer_share",
        type=Number(0, 1, min_open=True),
        metavar="SHARE",
        help="Share of connections, requests and streams that one client address may hold; 1 behind a proxy.",
    ),
    seconds("--header-timeout", "header_timeout", "Seconds that the header of a request may take to arrive."),
    seconds(
        "--progress-timeout",
        "progress_timeout",
        "Seconds that a body or a response may stall before its connection is closed.",
    ),
    seconds(
        "--idle-timeout", "idle_timeout", "Seconds after which a connection without a request is closed."
    ),
    seconds(
        "--stream-idle-timeout",
        "stream_idle_timeout",
        "Seconds without a message in either direction after which a streaming gRPC call or a WebSocket"
        " ends.",
    ),
    fills(
        "--exit-timeout-secs",
        "drain_timeout",
        type=Number(0),
        metavar="SECONDS",
        help="Seconds to finish requests in flight on shutdown.",
    ),
    path(
        "--auth",
        "auth",
        "TOML file of keys and what each may do, see 'backline keys'; it is read again when it changes.",
    ),
    flag(
        "--insecure-open",
        "insecure_open",
        "Let everybody change models and settings without a key, on any address.",
    ),
    fills(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        callback=parsed(parse_origin),
        metavar="ORIGIN",
        help="Let web pages of this origin use the server, such as https://console.example.org; repeatable.",
    ),
    fills(
        "--allowed-host",
        "allowed_hosts",
        multiple=True,
        callback=parsed(parse_allowed_host),
        metavar="NAME",
        help="Another host name under which clients reach the server; *.example.org: all names below"
        " example.org; *: any name, but only for requests that do not come from web pages; repeatable.",
    ),
    fills(
        "--http-restricted-api",
        "http_restricted_apis",
        multiple=True,
        callback=_restrictions,
        metavar="APIS:KEY=VALUE",
        help="Refuse HTTP requests to these groups of routes unless they have the header field KEY with this"
        f" value; groups: {', '.join(Api)}; repeatable.",
    ),
    fills(
        "--grpc-restricted-protocol",
        "grpc_restricted_protocols",
        multiple=True,
        callback=_restrictions,
        metavar="APIS:KEY=VALUE",
        help=f"The same for gRPC, by the metadata {GRPC_PREFIX}KEY; repeatable.",
    ),
    fills(
        "--http-header-forward-pattern",
        "http_header_forward_pattern",
        callback=_pattern,
        metavar="REGEX",
        help="Pass header fields whose names match to models, as parameters of the request.",
    ),
    fills(
        "--grpc-header-forward-pattern",
        "grpc_header_forward_pattern",
        callback=_pattern,
        metavar="REGEX",
        help="The same for metadata of gRPC calls.",
    ),
    fills(
        "--not-ready-status",
        "not_ready_status",
        type=click.Choice(("503", "400")),
        default="503",
        callback=lambda context, parameter, status: int(status),
        help="HTTP status of a failed health check; with 400, all health checks respond as Triton's do.",
    ),
    fills(
        "--target-in-flight",
        "target_in_flight",
        type=Number(0, min_open=True),
        metavar="COUNT",
        help="The requests in flight at which this server counts as fully used, for the metrics by which an"
        " autoscaler sets the number of servers; default: two per core.",
    ),
    fills(
        "--metrics-config",
        "metrics",
        default=None,
        multiple=True,
        callback=_metrics,
        metavar="SETTING=VALUE",
        help="Metrics of latencies as in Triton: counter_latencies, histogram_latencies or summary_latencies,"
        " each true or false; summary_quantiles=QUANTILE:ERROR,...; repeatable.",
    ),
    fills(
        "--allow-client-shm",
        "allow_client_shm",
        type=bool,
        metavar="true|false",
        help="Let clients on this machine pass inputs and outputs in shared memory (Linux).",
    ),
    fills(
        "--trace-config",
        "trace",
        default=None,
        multiple=True,
        callback=_trace,
        metavar="[MODE,]SETTING=VALUE",
        help="Trace settings as in Triton: level, rate, count, mode=opentelemetry; triton,file=PATH;"
        " opentelemetry,url=URL; repeatable.",
    ),
)


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options of a server to a command. The command receives `options`, a ServerOptions.

    The list of repositories may be empty. Raises UsageError for contradictory options.
    """

    @wraps(command)
    def with_options(
        *,
        repositories: tuple[str, ...],
        model_repository: tuple[str, ...],
        rate_limit: str,
        rate_limit_resource: tuple[str, ...],
        no_http: bool,
        no_grpc: bool,
        no_metrics: bool,
        ssl_certificate: Path | None,
        ssl_key: Path | None,
        ssl_client_ca: Path | None,
        ssl_client_auth: ClientAuth | None,
        **given: Any,
    ) -> Any:
        given["repositories"] = repositories
        if repositories == ("serve",):
            from backline.cli.serve.platforms import set_for_sagemaker  # few servers need it

            set_for_sagemaker(given, click.get_current_context())
        given["repositories"] += model_repository
        given["rate_limit"] = _resources(rate_limit, rate_limit_resource)
        given["tls"] = _tls(ssl_certificate, ssl_key, ssl_client_ca, ssl_client_auth)
        given["http_port"] = None if no_http else given["http_port"]
        given["grpc_port"] = None if no_grpc else given["grpc_port"]
        given["metrics_port"] = None if no_metrics else given["metrics_port"]
        given["lifecycle"] = _filled(LifecycleOptions, given)
        given["limits"] = _filled(Limits, given)
        options: ServerOptions = _filled(ServerOptions, given)
        _check_ports(options)
        _check_tls(options)
        if options.lifecycle.load_models and options.lifecycle.mode != "explicit":
            raise click.UsageError(
                "--load-model needs --model-control-mode explicit: the other modes load all models"
            )
        return command(options=options, **given)

    return decorated(with_options, _OPTIONS)


def _filled(kind: Any, given: dict[str, Any]) -> Any:
    """Creates an instance of `kind`, and removes the values of its fields from `given`."""
    return kind(**{name: given.pop(name) for name in kind.__struct_fields__ if name in given})


class SamePort(click.UsageError):
    """Raised if two ports of the server have the same address and number."""

    def __init__(self, one: OpenPort, other: OpenPort) -> None:
        first, second = (f"--{port.label.lower()}-port" for port in (one, other))
        super().__init__(
            f"{second} and {first} are both {one.port}. Every port speaks every protocol:"
            " leave one out (--no-grpc, --no-metrics) or choose another"
        )
        self.labels = one.label, other.label
        self.address = f"{one.url_host}:{one.port}"


def _check_ports(options: ServerOptions) -> None:
    taken: dict[tuple[str, int], OpenPort] = {}
    for one in options.ports:
        other = taken.setdefault((one.host, one.port), one)
        if one.port and other is not one:
            raise SamePort(other, one)


def _resources(rate_limit: str, resources: Sequence[str]) -> tuple[str, ...] | None:
    if rate_limit == "off":
        if resources:
            raise click.UsageError(
                "--rate-limit-resource needs --rate-limit execution_count: otherwise no instance needs"
                " resources"
            )
        return None
    from backline.schedule.rate_limit.limits import parse_resources

    try:
        parse_resources(tuple(resources))
    except InvalidArgument as error:
        raise click.UsageError(f"--rate-limit-resource: {error.message}") from None
    return tuple(resources)


def _tls(
    certificate: Path | None, key: Path | None, client_ca: Path | None, client_auth: ClientAuth | None
) -> TlsFiles | None:
    if client_auth is not None and client_ca is None:
        raise click.UsageError(
            "--ssl-client-auth needs --ssl-client-ca, the certificate of the CA that signs client"
            " certificates"
        )
    if certificate is None and key is None and client_ca is None:
        return None
    if certificate is None or key is None:
        raise click.UsageError("TLS needs both --ssl-certificate and --ssl-key")
    return TlsFiles(certificate, key, client_ca, client_auth or "required")


def _check_tls(options: ServerOptions) -> None:
    tls = options.tls
    if tls is not None and tls.client_auth == "optional" and options.auth is None:
        raise click.UsageError(
            "--ssl-client-auth optional needs --auth: without a file whose [[certificates]] say what clients"
            " with a certificate may do, a certificate makes no difference"
        )
    if options.tls_grpc_only and (tls is None or options.grpc_port is None):
        missing = "--ssl-certificate" if tls is None else "a gRPC port"
        raise click.UsageError(f"--ssl-grpc-only has no effect without {missing}")
    if options.metrics_plain and options.tls_grpc_only:
        raise click.UsageError("--metrics-plain and --ssl-grpc-only contradict each other: leave one out")
    if options.metrics_plain and (tls is None or options.metrics_port is None):
        missing = "--ssl-certificate" if tls is None else "a metrics port"
        raise click.UsageError(f"--metrics-plain has no effect without {missing}")
