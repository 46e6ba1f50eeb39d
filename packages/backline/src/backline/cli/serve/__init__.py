"""`backline serve`: runs a server with the given options until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import io
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, TextIO

import click
from msgspec.structs import replace

from backline.cli.command import run
from backline.cli.numbers import WholeNumber
from backline.cli.options import Decorator, option
from backline.cli.serve.debugging import STOPPED_WITHIN, check_debugged, debugged_options, kept_terminal
from backline.cli.serve.engine import RayOptions, engine_options, in_front
from backline.cli.serve.fields import decorated, unknown_variables
from backline.cli.serve.options import server_options
from backline.cli.serve.report import LoadReport, print_report
from backline.cli.serve.triton_options import ServeCommand
from backline.embedded.embedded import ModelsNotLoaded
from backline.lifecycle.loading.load_threads import loads_running
from backline.observe.log.server_log import ServerLog
from backline.observe.log.settings import FORMATS, LEVELS, LogFormat, LogLevel, LogSettings
from backline.server import OpenPort, PortNotOpened, Server, ServerOptions
from backline.system.memory import memory_limit, share_arena
from backline.system.service_manager import is_managed, notify
from backline.wire.limits import Limits
from backline.wire.tls import TlsFileError
from backline_client.values.errors import BacklineError, NotFound

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from backline.observe.log.server_log import ServerLog


def _severity(name: str, text: str) -> Decorator:
    return option(name, type=bool, metavar="true|false", help=text)


#: The values of --log-format that select Triton's form of log lines, and the format that each value sets.
_TRITON_FORMATS: dict[str, LogFormat] = {"triton": "default", "triton-ISO8601": "ISO8601"}

_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="warning",
        help="The lowest severity that is logged.",
    ),
    _severity("--log-info", "Whether to log informational lines, regardless of --log-level."),
    _severity("--log-warning", "Whether to log warnings, regardless of --log-level."),
    _severity("--log-error", "Whether to log errors, regardless of --log-level."),
    option(
        "--log-verbose",
        type=WholeNumber(0),
        metavar="LEVEL",
        help="1 also logs each request and verbose messages from models, 2 everything. Default: 0, or 2 with"
        " --log-level debug.",
    ),
    option(
        "--log-file",
        type=click.Path(path_type=Path),
        help="Log to this file instead of stderr. If it is moved away, the server opens a new file.",
    ),
    option(
        "--log-format",
        type=click.Choice((*FORMATS, *_TRITON_FORMATS), case_sensitive=False),
        default="default",
        help="The format of log lines; triton and triton-ISO8601 are Triton's formats.",
    ),
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the log options to a command. The command receives `log`, a LogSettings."""

    @wraps(command)
    def with_settings(
        *arguments: Any,
        log_level: LogLevel,
        log_info: bool | None,
        log_warning: bool | None,
        log_error: bool | None,
        log_verbose: int | None,
        log_file: Path | None,
        log_format: str,
        **others: Any,
    ) -> Any:
        settings = LogSettings.of_level(
            log_level,
            info=log_info,
            warning=log_warning,
            error=log_error,
            verbose_level=log_verbose,
            file=None if log_file is None else str(log_file),
            format=_TRITON_FORMATS.get(log_format, log_format),
            style="triton" if log_format in _TRITON_FORMATS else "backline",
        )
        return command(*arguments, log=settings, **others)

    return decorated(with_settings, _OPTIONS)


@contextmanager
def installed_log(settings: LogSettings) -> Iterator[ServerLog]:
    """Installs the server's log during a `with` block. Raises UsageError if the log file cannot be opened."""
    try:
        log = ServerLog(settings)
    except OSError as error:
        raise click.UsageError(f"--log-file {settings.file}: {error.strerror or error}") from None
    with log.installed():
        yield log


class LastingOutput(io.RawIOBase):
    """A stream to a file descriptor. Output that cannot be written, for example to a full disk or a closed
    pipe, is dropped.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._descriptor >= 0 and os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return os.write(self._descriptor, data)
        except OSError:
            return memoryview(data).nbytes


@contextmanager
def lasting_output() -> Iterator[None]:
    """Keeps printing from failing during a `with` block, by dropping output that cannot be written."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, before)
    try:
        yield
    finally:
        for now, old in zip((sys.stdout, sys.stderr), before, strict=True):
            if now is not old:
                now.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None) -> TextIO:
    """Returns a stream that writes to the same file as `stream` but never raises.

    If `stream` is None, output is discarded. A stream without a file, such as a StringIO, is returned
    unchanged.
    """
    if stream is None:
        return io.TextIOWrapper(io.BufferedWriter(LastingOutput(-1)))
    if not isinstance(stream, io.TextIOWrapper) or stream.closed:
        return stream
    try:
        descriptor = stream.fileno()
    except OSError:
        return stream
    buffered = io.BufferedWriter(LastingOutput(descriptor))
    return io.TextIOWrapper(buffered, stream.encoding, stream.errors, line_buffering=stream.line_buffering)


log = logging.getLogger("backline.serve")

#: The number of open files reserved for models, worker processes, the log and late imports.
RESERVED = 256


def within_open_files(limits: Limits) -> Limits:
    """Raises this process's limit on open files if possible. Returns `limits` with a maximum number of
    connections that leaves file descriptors free.

    Without a free file descriptor, the server could neither refuse a connection nor read a model.
    """
    if sys.platform == "win32":
        return limits
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.max_connections + RESERVED
    if soft != resource.RLIM_INFINITY and soft < needed:
        wanted = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
        except (OSError, ValueError):  # macOS allows fewer open files than its reported hard limit
            pass
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return limits
    fitting = max(soft - RESERVED, soft // 2, 1)
    log.warning(
        "this process may open at most %d files, so it accepts at most %d connections instead of %d: raise"
        " the limit (ulimit -n %d)",
        soft,
        fitting,
        limits.max_connections,
        needed,
    )
    return replace(limits, max_connections=fitting)


#: Request bodies and unread responses may take at most the memory divided by this number, because running a
#: request takes several copies of it: decoded inputs, memory shared with a worker, the response.
_BUFFERED_SHARE = 8


def within_memory(limits: Limits) -> Limits:
    """Returns `limits` with a `max_buffered_bytes` that suits the memory of the container or machine.

    The value is lower than the default if there is little memory, but always allows a body of the maximum
    size.
    """
    memory = memory_limit()
    if memory is None:
        return limits
    most = max(memory // _BUFFERED_SHARE, limits.max_body_size)
    return replace(limits, max_buffered_bytes=min(limits.max_buffered_bytes, most))


#: Signals that stop the server. A service manager sends the first, Ctrl-C the second, and a terminal the
#: third when it is closed. SIGHUP may also be a request to read certificates and keys again.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Maximum time, in seconds, for which runs and unloading may continue after all connections have been closed.
REST_WITHIN = 5.0

_EPILOG = """\b
Examples:
  backline serve models/
  backline serve model.onnx --model-name add1
  backline serve models/ more-models/ --host 0.0.0.0 --http-port 9000
  BACKLINE_GRPC_PORT=0 backline serve models/
  backline serve models/ --model-control-mode poll --repository-poll-secs 5
  backline serve fast=hf://owner/repo:onnx/model_int8.onnx
  backline serve s3://bucket/models --model-control-mode explicit --load-model add1
  backline serve models/ --cache-config local,size=256MiB
  backline serve models/ --rate-limit execution_count --rate-limit-resource memory:4
  backline serve models/ --ssl-certificate server.crt --ssl-key server.key
  backline serve models/ --allow-client-shm=true
  backline serve models/ --trace-config mode=opentelemetry --trace-config level=TIMESTAMPS
  backline serve models/ --trace-config triton,file=trace.json --trace-config level=TIMESTAMPS
  backline serve models/ --no-grpc --no-metrics --unix-socket /run/backline.sock
  backline serve models/ --log-verbose 1 --log-format json --log-file /var/log/backline.log
  backline serve models/ --engine ray --ray-replicas 2 --ray-max-replicas 8
  backline serve models/ --debug tagger
  backline serve --debug tagger/

A repository is a folder or URL with <model>/<version>/<file>, for example models/add1/1/model.onnx.
Every port speaks HTTP/1.1, HTTP/2 and gRPC: one is enough behind a proxy."""


debug_option = click.option(
    "--debug",
    metavar="MODEL",
    envvar="BACKLINE_DEBUG_MODEL",
    show_envvar=True,
    help="Run this Python model in the server's process: breakpoints work, nothing times out, and edits"
    " reload it. Without REPO, give the path of its folder or file.",
)


@click.command(cls=ServeCommand, epilog=_EPILOG, context_settings={"show_default": True})
@server_options
@engine_options
@debug_option
@log_options
def command(options: ServerOptions, engine: RayOptions | None, debug: str | None, log: LogSettings) -> int:
    """Serve the models of one or more repositories.

    All models load in parallel. A model that fails to load is listed with the reason. On SIGTERM or Ctrl-C,
    the server completes the requests in flight and exits.
    """
    if not options.repositories and debug is None:
        raise click.UsageError("No repository was given. Name a folder of models: backline serve models/")
    if engine is not None and debug is not None:
        raise click.UsageError(
            "--debug runs a model in this process, but --engine ray runs models in others: leave one out"
        )
    try:
        with in_front(options, engine) as fronted:
            return serve_until_stopped(fronted, debug, log)
    except NotFound as error:
        from backline.cli.model_folder import similar_path  # imported here, because it imports backends

        missing = [Path(one).absolute() for one in map(str, options.repositories) if "://" not in one]
        hints = [similar_path(path) for path in missing if not path.exists()]
        raise NotFound(error.message + next(iter(hints), "")) from None


def _nothing_to_say(server: Server | None = None) -> None:
    """Does nothing. This is the default for `on_log` and `on_started`."""


def report_crashes() -> None:
    """Makes a crash in native code print the Python stacks of all threads to stderr.

    Otherwise nothing would show which model or library crashed the process.
    """
    # A process that was started without stderr has nowhere to print the stacks.
    if sys.__stderr__ is not None and not faulthandler.is_enabled():
        faulthandler.enable(sys.__stderr__)


def serve_until_stopped(
    options: ServerOptions,
    debug: str | None,
    log: LogSettings,
    *,
    on_log: Callable[[], None] = _nothing_to_say,
    on_started: Callable[[Server], None] = _nothing_to_say,
    abandoned: int = 0,
) -> int:
    """Serves until a signal arrives. Returns the exit status 0. If a run or a load is still in progress after
    the server has stopped, ends the process with the exit status `abandoned` instead. With `debug`, always
    ends the process, with 0.

    `on_log` is called when the log is open, and `on_started` when every model has loaded or failed to load.
    """
    if debug is not None:
        options = debugged_options(options, debug)
        log = replace(log, info=True)  # reloads are logged as informational lines
    share_arena()  # before the log's thread, the first thread, gets an arena of its own
    report_crashes()
    with (
        lasting_output(),
        installed_log(log) as server_log,
        kept_terminal() if debug is not None else contextlib.nullcontext(),
    ):
        for warning in unknown_variables(click.get_current_context().command, os.environ):
            logging.getLogger("backline.serve").warning(warning)
        on_log()
        options = replace(options, limits=within_open_files(within_memory(options.limits)))
        rested = run(serve(options, server_log, on_started))
    if debug is not None:
        os._exit(0)  # a thread that is stopped at a breakpoint cannot be interrupted
    if loads_running() or not rested:
        print(
            f"A {'run' if not rested else 'load'} is still in progress and is abandoned",
            file=sys.stderr,
            flush=True,
        )
        os._exit(abandoned)
    return 0


async def serve(
    options: ServerOptions, server_log: ServerLog, on_started: Callable[[Server], None] = _nothing_to_say
) -> bool:
    """Serves until a signal arrives. Returns whether all runs have ended. Raises BacklineError if the server
    cannot start.

    `on_started` is called when every model has loaded or failed to load. A second signal ends the process.
    SIGHUP reloads certificates and keys. If there are none, or if the terminal has closed, SIGHUP stops the
    server. A service manager sends SIGHUP only to reload.
    """
    began = monotonic()
    server = Server(options, server_log)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop(received: int) -> None:
        log.info("Signal (%d) received.", received)
        stopping.set()
        for number in heard:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    on_terminal = _has_terminal()

    def hang_up() -> None:
        if (server.reloadable or is_managed()) and on_terminal == _has_terminal():
            server.reload()
        else:
            stop(signal.SIGHUP)

    # SIGINT and SIGTERM stop the server even if this process was started with these signals ignored, as
    # SIGINT is in background jobs of a shell script. An ignored SIGHUP remains ignored, because that is the
    # purpose of nohup.
    heard = [
        number
        for number in _SIGNALS
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    ]
    for number in heard:
        loop.add_signal_handler(number, hang_up if number == signal.SIGHUP else partial(stop, number))
    logged = server_log.settings()
    report = LoadReport(
        server.engine,
        bar=not options.lifecycle.debugged_model,
        failures=bool(logged["log_file"]) or not logged["log_error"],
    )
    starting = asyncio.create_task(server.start(report.on_event))
    waiting = asyncio.create_task(stopping.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        report.close()
        if starting.done():
            if isinstance(starting.exception(), ModelsNotLoaded):
                on_started(server)
            starting.result()
            if options.lifecycle.debugged_model:
                check_debugged(server.engine, options.lifecycle.debugged_model)
            if not server.engine.ready:
                await asyncio.to_thread(server_log.drain)  # the report refers to messages in the log
            print_report(server, server.options, monotonic() - began)
            on_started(server)
            notify("READY=1")
            await waiting
        notify("STOPPING=1")
        log.info("Waiting for in-flight requests to complete.")
        print("Stopping: finishing the requests in flight", flush=True)
    except PortNotOpened as error:
        raise NotListening(_not_opened(error), error.port) from None
    except OSError as error:
        raise BacklineError(error.strerror or str(error)) from None
    except TlsFileError as error:
        raise BacklineError(str(error)) from None
    finally:
        report.close()
        waiting.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.wait((starting,))
        rested = await _stop(server, options)
    print("Stopped", flush=True)
    return rested


def _has_terminal() -> bool:
    """Returns whether this process has a controlling terminal that has not been closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _stop(server: Server, options: ServerOptions) -> bool:
    """Stops the server. Returns whether all runs ended in time. If not, their clients are disconnected."""
    # With a debugger, the time is short, because a request that has stopped at a breakpoint may never end.
    limit = STOPPED_WITHIN if options.lifecycle.debugged_model else options.limits.drain_timeout + REST_WITHIN
    try:
        async with asyncio.timeout(limit):
            await server.stop()
    except TimeoutError:
        return False
    return True


class NotListening(BacklineError):
    """Raised when the server cannot listen on a port."""

    def __init__(self, message: str, port: OpenPort) -> None:
        super().__init__(message)
        self.port = port


def _not_opened(error: PortNotOpened) -> str:
    port, option = error.port.port, f"--{error.port.label.lower()}-port"
    if port and error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {error.port.host} is in use by another program. Stop it, or choose another"
            f" port: {option} {port + 10 if port < 65000 else 8000}, or {option} 0 for any"
        )
    if port and error.errno == errno.EACCES:
        return (
            f"port {port} needs privileges that this user does not have. Choose one above 1023: {option} 8000"
        )
    text = error.strerror or str(error)
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}. Choose an address of this machine with --host, for example 127.0.0.1 or 0.0.0.0"
    return text
