"""`backline serve`: runs a server from its options until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

import click

from backline.cli.command import run
from backline.cli.serve.debugging import STOPPED_WITHIN, check_debugged, debugged_options, kept_terminal
from backline.cli.serve.log_options import installed_log, log_options
from backline.cli.serve.options import server_options
from backline.cli.serve.process import lasting_output, within_open_files
from backline.cli.serve.report import LoadReport, print_report
from backline.cli.serve.triton_options import ServeCommand
from backline.engine.errors import BacklineError
from backline.lifecycle.loading.version_load import loads_running
from backline.observe.log.settings import LogSettings
from backline.server import Server, ServerOptions
from backline.wire.tls import TlsFileError

if TYPE_CHECKING:
    from backline.observe.log.server_log import ServerLog

#: What stops the server: a request of the system, Ctrl-C, a closed terminal.
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds for runs in progress and unloading, once all connections are closed.
REST_WITHIN = 5.0

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
  backline serve models/ --trace-config mode=opentelemetry --trace-config level=TIMESTAMPS
  backline serve models/ --trace-config triton,file=trace.json --trace-config level=TIMESTAMPS
  backline serve models/ --no-grpc --no-metrics --unix-socket /run/backline.sock
  backline serve models/ --log-verbose 1 --log-format json --log-file /var/log/backline.log
  backline serve models/ --debug tagger
  backline serve --debug tagger/

A repository is a folder or URL with <model>/<version>/<file>, for example models/add1/1/model.onnx.
Every port speaks HTTP/1.1, HTTP/2 and gRPC: one is enough behind a proxy."""


@click.command(cls=ServeCommand, epilog=_EPILOG, context_settings={"show_default": True})
@server_options
@click.option(
    "--debug",
    metavar="MODEL",
    envvar="BACKLINE_DEBUG_MODEL",
    show_envvar=True,
    help="Run this Python model in the server's process: breakpoints work, nothing times out, edits reload"
    " it."
    " Without REPO, the path of its folder or file.",
)
@log_options
def command(options: ServerOptions, debug: str | None, log: LogSettings) -> int:
    """Serve the models of one or more repositories.

    All models load in parallel; a model that fails shows why and does not stop the others. SIGTERM or Ctrl-C
    finishes the requests in flight, then exits.
    """
    if not options.repositories and debug is None:
        raise click.UsageError("No repository was given. Name a folder of models: backline serve models/")
    if debug is not None:
        options = debugged_options(options, debug)
        log = replace(log, info=True)  # shows reloads
    with (
        lasting_output(),
        installed_log(log) as server_log,
        kept_terminal() if debug is not None else contextlib.nullcontext(),
    ):
        options = replace(options, limits=within_open_files(options.limits))
        rested = run(serve(options, server_log))
    if debug is not None:
        os._exit(0)  # a thread may be at a breakpoint, which cannot be interrupted
    if loads_running() or not rested:
        print(
            f"A {'run' if not rested else 'load'} is still in progress and is abandoned",
            file=sys.stderr,
            flush=True,
        )
        os._exit(0)
    return 0


async def serve(options: ServerOptions, log: ServerLog) -> bool:
    """Serves until a signal arrives; returns whether all runs have ended.

    A second signal ends the process.
    """
    began = monotonic()
    server = Server(options, log)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()

    def stop() -> None:
        stopping.set()
        for number in heard:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)

    # nohup ignores SIGHUP
    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    for number in heard:
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
        print("Stopping: finishing the requests in flight", flush=True)
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
        rested = await _stop(server, options)
    print("Stopped", flush=True)
    return rested


async def _stop(server: Server, options: ServerOptions) -> bool:
    """Stops the server; returns whether all runs have ended. No client waits for those that have not."""
    # A request at a breakpoint may never end.
    limit = STOPPED_WITHIN if options.lifecycle.debugged_model else options.limits.drain_timeout + REST_WITHIN
    try:
        async with asyncio.timeout(limit):
            await server.stop()
    except TimeoutError:
        return False
    return True


def _port_in_use(error: OSError, options: ServerOptions) -> str:
    text = error.strerror or str(error)
    ports = (
        ("--http-port", options.http_port),
        ("--grpc-port", options.grpc_port),
        ("--metrics-port", options.metrics_port),
    )
    for name, port in ports:
        if port and f":{port}:" in text:
            if error.errno == errno.EADDRINUSE:
                return (
                    f"port {port} of {options.host} is in use by another program. Stop it, or choose another"
                    f" port: {name} {port + 10 if port < 65000 else 8000}, or {name} 0 for any"
                )
            if error.errno == errno.EACCES:
                return f"port {port} may not be opened by this user. Choose one above 1023: {name} 8000"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{text}. Choose an address of this machine with --host, for example 127.0.0.1 or 0.0.0.0"
    return text
