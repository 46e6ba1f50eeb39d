"""`backline serve`: from options to a running server, and back to the end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, get_args

import click

from backline.cli.debugging import STOPPED_WITHIN, check_debugged, debugged_options, kept_terminal
from backline.cli.event_loop import run
from backline.cli.lasting_output import lasting_output
from backline.cli.log_options import installed_log, log_options
from backline.cli.option import Command
from backline.cli.option import option as _option
from backline.cli.serve_report import LoadReport, print_report
from backline.cli.triton_options import ServeCommand
from backline.engine.errors import BacklineError, InvalidArgument
from backline.lifecycle.budget import parse_bytes
from backline.lifecycle.loading.load_threads import loads_running
from backline.lifecycle.options import ControlMode, LifecycleOptions
from backline.observe.log.settings import LogSettings
from backline.observe.tracing.config import TraceConfig, parse_trace_config
from backline.server import Server, ServerOptions
from backline.wire.limits import Limits
from backline.wire.tls import TlsFileError, TlsFiles

if TYPE_CHECKING:
    from backline.observe.log.server_log import ServerLog
    from backline.schedule.cache.config import CacheOptions

DEFAULTS = Limits()
LIFECYCLE = LifecycleOptions()


def _port(name: str, default: int, what: str) -> Callable[[Command], Command]:
    return _option(name, type=click.IntRange(0, 65535), default=default, help=f"Port of {what}; 0 takes any that is free.")


def _seconds(name: str, default: float, text: str) -> Callable[[Command], Command]:
    return _option(name, type=click.FloatRange(0, min_open=True), metavar="SECONDS", default=default, help=text)


def _count(name: str, default: int, text: str) -> Callable[[Command], Command]:
    return _option(name, type=click.IntRange(1), default=default, help=text)


class _Size(click.ParamType):
    """A number of bytes, with a unit if wanted."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


_EPILOG = """\b
Examples:
  backline serve models/
  backline serve model.onnx --model-name add1
  backline serve models/ more-models/ --host 0.0.0.0 --http-port 9000
  BACKLINE_GRPC_PORT=0 backline serve models/
  backline serve models/ --model-control-mode poll --repository-poll-secs 5
  backline serve s3://bucket/models --model-control-mode explicit --load-model add1
  backline serve models/ --cache-config local,size=256MiB
  backline serve models/ --rate-limit execution_count --rate-limit-resource memory:4
  backline serve models/ --ssl-certificate server.crt --ssl-key server.key
  backline serve models/ --allow-client-shm=true
  backline serve models/ --trace-config mode=opentelemetry --trace-config level=TIMESTAMPS --trace-config rate=100
  backline serve models/ --trace-config triton,file=trace.json --trace-config level=TIMESTAMPS --trace-config rate=1
  backline serve models/ --no-grpc --no-metrics --unix-socket /run/backline.sock
  backline serve models/ --log-verbose 1 --log-format json --log-file /var/log/backline.log
  backline serve models/ --debug tagger
  backline serve --debug tagger/

A repository is a folder or URL with <model>/<version>/<file>, for example models/add1/1/model.onnx.
Every port answers HTTP/1.1, HTTP/2 and gRPC: one is enough behind a proxy."""


@click.command(cls=ServeCommand, epilog=_EPILOG, context_settings={"show_default": True})
@click.argument("repositories", nargs=-1, metavar="REPO...")
@_option("--model-repository", multiple=True, metavar="REPO", help="A further repository.")
@_option(
    "--model-control-mode",
    type=click.Choice(get_args(ControlMode)),
    default="none",
    help="Who changes what is served: nobody, the repositories whenever they change, or requests.",
)
@_option("--load-model", multiple=True, metavar="MODEL", help="In mode explicit, a model to load at the start; * for all.")
@_option(
    "--repository-poll-secs",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    default=LIFECYCLE.poll_seconds,
    help="In mode poll, between two looks at a repository that cannot tell when it changes.",
)
@_option("--model-namespacing", is_flag=True, help="Call models <repository>.<model>, so that repositories may hold the same names.")
@_option("--model-config-name", metavar="NAME", help="Read configs/NAME.pbtxt of models that have it.")
@_option("--disable-auto-complete-config", is_flag=True, help="Refuse models whose configuration does not name all inputs and outputs.")
@_option("--model-name", metavar="NAME", help="What the model is called, where the repository is a single model: its file or its folder.")
@_option("--strict-readiness/--no-strict-readiness", default=True, help="Ready only when all models are, or as soon as they were tried.")
@_option("--trust-pickle", is_flag=True, help="Load models that can execute code when they are loaded: pickles, machine code.")
@_option("--trust-remote-code", is_flag=True, help="Run Python models of remote repositories, and those that loads bring along.")
@_option(
    "--strict-devices", is_flag=True, help="Refuse models that ask for a GPU which cannot be used, instead of running them on the CPU."
)
@_option("--exit-on-error", is_flag=True, help="End when a model cannot be loaded at the start, as Triton does.")
@_option("--model-load-retry-count", type=click.IntRange(0), default=0, help="Further attempts after a failed load, with pauses.")
@_seconds("--drain-timeout-secs", LIFECYCLE.drain_seconds, "Given to the requests of a version that is unloaded.")
@_option(
    "--memory-budget",
    type=_Size(),
    metavar="SIZE",
    help="Resident memory of the server, at most, as 2GiB: idle models are unloaded, and loaded again on request.",
)
@_option(
    "--max-queued-requests",
    type=click.IntRange(1),
    metavar="COUNT",
    help="Requests that may wait in the queues of all models together; further ones are refused with 503, unless their model is idle.",
)
@_option(
    "--cache-config",
    multiple=True,
    metavar="CACHE",
    help="Keeps answers of models with response_cache, as local,size=64MiB or redis,host=HOST,port=6379; may be spread over several.",
)
@_option(
    "--compute-threads",
    type=click.IntRange(0),
    metavar="COUNT",
    help="Threads that compute at once, of all models in this process; default: as many as there are cores; 0: any number.",
)
@_option(
    "--rate-limit",
    type=click.Choice(("off", "execution_count")),
    default="off",
    help="execution_count: instances run when they have the resources of their rate_limiter, and by their priorities.",
)
@_option(
    "--rate-limit-resource",
    multiple=True,
    metavar="NAME:COUNT[:DEVICE]",
    help="Of a resource there are so many; without any, of each as many as the instance takes that takes the most.",
)
@_option(
    "--state-dir",
    type=click.Path(path_type=Path),
    help="Keeps labels, the audit log and recorded requests; default: of its own for the repositories.",
)
@_option(
    "--cache-dir",
    type=click.Path(path_type=Path),
    help="Keeps files of remote repositories and environments of models; default: in the user's cache.",
)
@_option("--host", "--http-address", default="127.0.0.1", help="Address to listen on; 0.0.0.0 or :: for all of the machine.")
@_port("--http-port", 8000, "HTTP")
@_port("--grpc-port", 8001, "gRPC")
@_port("--metrics-port", 8002, "the Prometheus metrics")
@_option("--no-grpc", is_flag=True, help="Do not open the gRPC port.")
@_option("--no-metrics", is_flag=True, help="Do not open the metrics port; /metrics of the others stays.")
@_option("--unix-socket", type=click.Path(path_type=Path), help="Listen on a Unix socket too.")
@_option("--ssl-certificate", type=click.Path(path_type=Path), help="PEM file with the certificate: all ports speak TLS.")
@_option("--ssl-key", type=click.Path(path_type=Path), help="PEM file with its key.")
@_option("--ssl-client-ca", type=click.Path(path_type=Path), help="PEM file: only clients with a certificate of this authority.")
@_count("--model-load-thread-count", 4, "Models that are loaded at the same time.")
@_count("--http-max-input-size", DEFAULTS.max_body_size, "Largest request body or gRPC message, in bytes, before and after inflating.")
@_count("--max-header-size", DEFAULTS.max_header_size, "Largest head of a request, in bytes.")
@_count("--max-connections", DEFAULTS.max_connections, "Open connections.")
@_count("--max-concurrent-requests", DEFAULTS.max_concurrent_requests, "Requests in flight; further ones are refused with 503.")
@_seconds("--header-timeout", DEFAULTS.header_timeout, "Until the head of a request is complete.")
@_seconds("--progress-timeout", DEFAULTS.progress_timeout, "Without any byte while a body comes or an answer goes.")
@_seconds("--idle-timeout", DEFAULTS.idle_timeout, "On a connection without a request.")
@_seconds("--exit-timeout-secs", DEFAULTS.drain_timeout, "Given to requests in flight when the server stops.")
@_option(
    "--not-ready-status",
    type=click.Choice(("503", "400")),
    default="503",
    help="HTTP status of a health question whose answer is no; Triton's is 400.",
)
@_option(
    "--allow-client-shm",
    type=bool,
    metavar="true|false",
    default=False,
    help="Let clients of this machine register shared memory for inputs and outputs (Linux).",
)
@_option(
    "--trace-config",
    multiple=True,
    metavar="[MODE,]SETTING=VALUE",
    help="Traces requests as Triton: level, rate, count, mode=opentelemetry; triton,file=PATH; opentelemetry,url=URL. May be repeated.",
)
@click.option(
    "--debug",
    metavar="MODEL",
    envvar="BACKLINE_DEBUG_MODEL",
    show_envvar=True,
    help="Run this Python model in the server's process: breakpoints work, nothing times out, edits reload it. Without REPO, a path.",
)
@log_options
def command(
    repositories: Sequence[str],
    model_repository: Sequence[str],
    model_control_mode: ControlMode,
    load_model: Sequence[str],
    repository_poll_secs: float,
    model_namespacing: bool,
    model_config_name: str | None,
    disable_auto_complete_config: bool,
    model_name: str | None,
    strict_readiness: bool,
    trust_pickle: bool,
    trust_remote_code: bool,
    strict_devices: bool,
    exit_on_error: bool,
    model_load_retry_count: int,
    drain_timeout_secs: float,
    memory_budget: int | None,
    max_queued_requests: int | None,
    cache_config: Sequence[str],
    compute_threads: int | None,
    rate_limit: str,
    rate_limit_resource: Sequence[str],
    state_dir: Path | None,
    cache_dir: Path | None,
    host: str,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    no_grpc: bool,
    no_metrics: bool,
    unix_socket: Path | None,
    ssl_certificate: Path | None,
    ssl_key: Path | None,
    ssl_client_ca: Path | None,
    model_load_thread_count: int,
    http_max_input_size: int,
    max_header_size: int,
    max_connections: int,
    max_concurrent_requests: int,
    header_timeout: float,
    progress_timeout: float,
    idle_timeout: float,
    exit_timeout_secs: float,
    not_ready_status: str,
    allow_client_shm: bool,
    trace_config: Sequence[str],
    debug: str | None,
    log: LogSettings,
) -> int:
    """Serve the models of one or more repositories.

    All models load in parallel; one that fails says why and does not stop the others. SIGTERM or Ctrl-C finishes what is in flight and
    ends.
    """
    paths = (*repositories, *model_repository)
    if not paths and debug is None:
        raise click.UsageError("No repository was given. Name a folder of models: backline serve models/")
    _check_ports(
        {
            "--http-port": http_port,
            **({} if no_grpc else {"--grpc-port": grpc_port}),
            **({} if no_metrics else {"--metrics-port": metrics_port}),
        }
    )
    if load_model and model_control_mode != "explicit":
        raise click.UsageError("--load-model needs --model-control-mode explicit: in the other modes all models are loaded")
    options = ServerOptions(
        repositories=paths,
        lifecycle=LifecycleOptions(
            mode=model_control_mode,
            poll_seconds=repository_poll_secs,
            load_models=tuple(load_model),
            namespacing=model_namespacing,
            complete_configs=disable_auto_complete_config,
            load_threads=model_load_thread_count,
            load_retries=model_load_retry_count,
            drain_seconds=drain_timeout_secs,
            strict_readiness=strict_readiness,
            trust_pickle=trust_pickle,
            trust_remote_code=trust_remote_code,
            strict_devices=strict_devices,
            memory_budget=memory_budget,
            max_queued_requests=max_queued_requests,
            response_cache=_response_cache(cache_config),
            compute_threads=compute_threads,
            rate_limit=_resources(rate_limit, rate_limit_resource),
            cache_folder=cache_dir,
            state_folder=state_dir,
        ),
        config_name=model_config_name or "",
        model_name=model_name or "",
        exit_on_error=exit_on_error,
        host=host,
        http_port=http_port,
        grpc_port=None if no_grpc else grpc_port,
        metrics_port=None if no_metrics else metrics_port,
        unix_socket=unix_socket,
        tls=_tls(ssl_certificate, ssl_key, ssl_client_ca),
        limits=Limits(
            max_body_size=http_max_input_size,
            max_header_size=max_header_size,
            max_connections=max_connections,
            max_concurrent_requests=max_concurrent_requests,
            header_timeout=header_timeout,
            progress_timeout=progress_timeout,
            idle_timeout=idle_timeout,
            drain_timeout=exit_timeout_secs,
        ),
        not_ready_status=int(not_ready_status),
        allow_client_shm=allow_client_shm,
        trace=_trace(trace_config),
    )
    if debug is not None:
        options = debugged_options(options, debug)
        log = replace(log, info=True)  # it tells of reloads
    with lasting_output(), installed_log(log) as server_log, kept_terminal() if debug is not None else contextlib.nullcontext():
        status = run(serve(options, server_log))
    if debug is not None:
        os._exit(status)  # a thread may stand at a breakpoint, which nothing ends
    if loads_running():
        print("A load has not ended by itself, and ends with the server", file=sys.stderr, flush=True)
        os._exit(status)
    return status


def _check_ports(ports: dict[str, int]) -> None:
    taken: dict[int, str] = {}
    for name, port in ports.items():
        if port and port in taken:
            raise click.UsageError(
                f"{name} and {taken[port]} are both {port}. One port answers every protocol:"
                " leave one out (--no-grpc, --no-metrics) or choose another"
            )
        taken[port] = name


def _response_cache(texts: Sequence[str]) -> CacheOptions | None:
    if not texts:
        return None
    from backline.schedule.cache.config import parse_cache_config

    try:
        return parse_cache_config(texts, parse_bytes)
    except InvalidArgument as error:
        raise click.UsageError(error.message) from None


def _trace(texts: Sequence[str]) -> TraceConfig:
    try:
        return parse_trace_config(texts)
    except InvalidArgument as error:
        raise click.UsageError(f"--trace-config: {error.message}") from None


def _resources(rate_limit: str, resources: Sequence[str]) -> tuple[str, ...] | None:
    if rate_limit == "off":
        if resources:
            raise click.UsageError("--rate-limit-resource needs --rate-limit execution_count: without it nothing takes resources")
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


async def serve(options: ServerOptions, log: ServerLog) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit status. A second signal ends at once."""
    began = monotonic()
    server = Server(options, log)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    report = LoadReport(server.engine, bar=not options.lifecycle.debugged_model)
    starting = asyncio.create_task(server.start(report.on_event))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        report.close()
        if starting.done():
            starting.result()
            if options.lifecycle.debugged_model:
                check_debugged(server.engine, options.lifecycle.debugged_model)
            print_report(server, options, monotonic() - began)
            await waiting
        print("Stopping: requests in flight are finished", flush=True)
    except OSError as error:
        raise BacklineError(_port_in_use(error, options)) from None
    except TlsFileError as error:
        raise BacklineError(str(error)) from None
    finally:
        report.close()
        waiting.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
        # A request at a breakpoint of a model that is debugged has no end of its own.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOPPED_WITHIN if options.lifecycle.debugged_model else None):
                await server.stop()
    print("Stopped", flush=True)
    return 0


def _port_in_use(error: OSError, options: ServerOptions) -> str:
    text = error.strerror or str(error)
    ports = (("--http-port", options.http_port), ("--grpc-port", options.grpc_port), ("--metrics-port", options.metrics_port))
    for name, port in ports:
        if port and f":{port}:" in text:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {port} of {options.host} is in use by another program. Stop it, or choose another port:"
                    f" {name} {port + 10 if port < 65000 else 8000}, or {name} 0 for any"
                )
            if error.errno == errno.EACCES:
                return f"port {port} may not be opened by this user. Choose one above 1023: {name} 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}. Choose an address of this machine with --host, for example 127.0.0.1 or 0.0.0.0"
    return text
