"""`backline tritonserver`: runs a server with the command line and the defaults of Triton.

The command line is translated into a command line of `backline serve`, so both commands run the same server.
The script `backline-tritonserver` can be linked as `tritonserver`.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import click
from msgspec import structs

from backline.cli.serve import (
    NotListening,
    debug_option,
    log_options,
    serve_until_stopped,
)
from backline.cli.serve.options import SamePort, server_options
from backline.cli.serve.triton_options import ServeCommand
from backline.cli.tritonserver.command_line import BadCommandLine, BadOption, Translation, translate
from backline.cli.tritonserver.options import OPTIONS
from backline.dialects.open_inference.metadata import server_metadata
from backline.embedded.embedded import ModelsNotLoaded
from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline.observe.log.settings import LogSettings
from backline.server import Server, ServerOptions
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.names import printable

log = logging.getLogger("backline.tritonserver")

#: The defaults of Triton that differ from those of `backline serve`. Environment variables take precedence.
DEFAULTS: dict[str, Any] = {
    "name": "triton",
    "host": "0.0.0.0",  # as in Triton; the start-up report warns that other machines can use the server
    "grpc_host": "0.0.0.0",
    "insecure_open": True,
    "allowed_hosts": ("*",),
    "allow_client_shm": True,
    "exit_on_error": True,
    "not_ready_status": "400",
    "log_info": True,
    "log_format": "triton",
}


#: The environment variables that are Triton's debugging hooks, and the field of LifecycleOptions that each
#: sets.
_HOLDS = {
    "TRITONSERVER_DELAY_SCHEDULER": "hold_requests",
    "TRITONSERVER_BACKLOG_DELAY_SCHEDULER": "hold_backlog",
}


#: Triton's text for a command line without a repository.
_NO_REPOSITORY = "--model-repository must be specified"
#: Triton's text for a start at which a model failed to load.
_NOT_ALL_LOADED = "failed to load all models"


class StartFailed(click.ClickException):
    """An error that ends the command with status 1, which is Triton's status after any error. Only the
    message of the error is printed.
    """

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(self.message, err=True)


class TritonCommand(click.Command):
    """A command that does not parse its arguments. Its help lists Triton's options and their effects."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--help" in args or "-h" in args:
            click.echo(ctx.get_help(), color=ctx.color)
            ctx.exit()
        ctx.params["arguments"] = tuple(args)
        return []

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for outcome, title in (
            ("taken", "Options of Triton"),
            ("no effect", "Accepted without effect"),
            ("missing", "Accepted with a warning, because Backline lacks the feature"),
        ):
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"--{option.name}", option.becomes.replace("`", ""))
                        for option in OPTIONS
                        if option.outcome == outcome
                    ]
                )


@dataclass(frozen=True, slots=True)
class Parsed:
    """The options and settings that a command line sets."""

    options: ServerOptions
    debug: str | None
    log: LogSettings


@click.command(cls=ServeCommand, add_help_option=False)
@server_options
@debug_option
@log_options
def _parse(options: ServerOptions, debug: str | None, log: LogSettings) -> Parsed:
    return Parsed(options, debug, log)


def read_arguments(arguments: Sequence[str]) -> tuple[Parsed, Translation]:
    """Reads a command line of tritonserver. Raises StartFailed if Triton or Backline refuses it."""
    try:
        translation = translate(arguments, _takes_value)
        parsed: Parsed = _parse.main(
            list(translation.arguments),
            prog_name="backline tritonserver",
            standalone_mode=False,
            default_map=DEFAULTS,
        )
    except BadOption as error:
        raise StartFailed(f"{_program()}: {error.message}") from None
    except BadCommandLine as error:
        raise StartFailed(error.message) from None
    except SamePort as error:
        first, second = (label.replace("gRPC", "GRPC") for label in error.labels)
        raise StartFailed(
            f"The server cannot listen to {first} requests and {second} requests at the same address and port"
            f" {error.address}"
        ) from None
    except click.UsageError as error:
        raise StartFailed(f"error: {error.format_message()}") from None
    if not parsed.options.repositories and parsed.debug is None and parsed.options.exit_on_error:
        raise StartFailed(f"error: creating server: Invalid argument - {_NO_REPOSITORY}")
    return _as_in_triton(parsed), translation


def _as_in_triton(parsed: Parsed) -> Parsed:
    """Adds the settings for which there is no option: Triton's ONNX defaults, readiness rules, queues and
    debugging hooks.

    The hooks are environment variables. Raises StartFailed if a hook has an invalid value.
    """
    held: dict[str, Any] = {"onnx_as_triton": True, "control_as_triton": True, "default_queue": "any"}
    for name, field in _HOLDS.items():
        text = os.environ.get(name, "0")
        if not text.isdecimal():
            raise StartFailed(f"error: {name} is '{text}', expected a number of requests")
        held[field] = int(text)
    lifecycle = structs.replace(parsed.options.lifecycle, **held)
    return replace(parsed, options=structs.replace(parsed.options, lifecycle=lifecycle))


@click.command(
    cls=TritonCommand,
    add_help_option=False,
    options_metavar="OPTION...",
    epilog="The options of 'backline serve' are accepted too, such as --auth; see its --help-all.",
)
def command(arguments: tuple[str, ...]) -> int:
    """Serve models with the command line and the defaults of Triton's tritonserver.

    The ports are open to every machine, and everybody may change models and settings: add --auth to require
    keys. Exit status: 0 after a signal; 1 if the server does not start, or exits before a run or load ends.
    """
    parsed, translation = read_arguments(arguments)
    settings, problem = _writable(parsed.log)

    def on_log() -> None:
        if problem:
            log.warning(problem)
        if not parsed.options.repositories and parsed.debug is None:
            log.error(
                "Invalid argument: %s; without one, the server is neither live nor ready", _NO_REPOSITORY
            )
        for repository in filter(_is_missing, parsed.options.repositories):
            log.error("Internal: failed to stat file %s", repository)
        for sentence in translation.without_effect:
            log.info(sentence)
        for sentence in translation.missing:
            log.warning(sentence)

    def on_started(server: Server) -> None:
        if any(model.state is ModelState.UNAVAILABLE and model.reason for model in server.engine.models()):
            log.error("Internal: %s", _NOT_ALL_LOADED)
        log.info("models", extra={"table": model_table(server.engine)})
        log.info("options", extra={"table": option_table(server)})

    try:
        return serve_until_stopped(
            parsed.options, parsed.debug, settings, on_log=on_log, on_started=on_started, abandoned=1
        )
    except BacklineError as error:
        _fail(error, parsed.options.repositories)


def _writable(settings: LogSettings) -> tuple[LogSettings, str]:
    """Returns the log settings, and what is wrong with the log file, or "". If the file cannot be opened, the
    returned settings do not contain it.

    Triton also starts without its log file, and then logs to stderr.
    """
    if settings.file:
        try:
            with open(settings.file, "ab"):
                pass
        except OSError as error:
            problem = f"--log-file {settings.file}: {error.strerror or error}; the log goes to stderr"
            return structs.replace(settings, file=""), problem
    return settings, ""


def _program() -> str:
    """Returns the name of the program for error texts: sys.argv[0] if its file name contains "tritonserver",
    and otherwise "backline tritonserver".
    """
    return sys.argv[0] if "tritonserver" in Path(sys.argv[0]).name else "backline tritonserver"


def _fail(error: BacklineError, repositories: Sequence[str | Path]) -> NoReturn:
    """Raises StartFailed with Triton's text for the error, followed by Backline's details."""
    message = error.message.rstrip("\n").removesuffix(";")
    if isinstance(error, NotListening):
        port = error.port
        service = {"HTTP": "HTTP", "gRPC": "GRPC", "metrics": "Metrics"}[port.label]
        address = f"{port.url_host}:{port.port}"
        raise StartFailed(
            f"failed to start {service} service: Unavailable - Socket '{address}' already in use: {message}"
        ) from None
    if isinstance(error, ModelsNotLoaded):
        reasons = message.partition(":")[2]
        raise StartFailed(f"error: creating server: Internal - {_NOT_ALL_LOADED}:{reasons}") from None
    if isinstance(error, NotFound) and (missing := [one for one in repositories if _is_missing(one)]):
        message = f"failed to stat file {missing[0]}: {message}"
    raise StartFailed(f"error: creating server: Internal - {message}") from None


def _is_missing(repository: str | Path) -> bool:
    return "://" not in str(repository) and not Path(repository).exists()


def _takes_value(name: str) -> bool | None:
    """Returns whether an option of `backline serve` takes a value; None if there is no such option."""
    for param in _parse.params:
        if isinstance(param, click.Option) and name in (*param.opts, *param.secondary_opts):
            return not param.is_flag
    return None


def model_table(engine: Engine) -> str:
    """Returns a table of all model versions, with their states and the reasons for failures."""
    rows = [
        (
            model.name,
            model.version,
            "READY" if model.state is ModelState.READY else f"{model.state.value}: {model.reason}",
        )
        for model in engine.models()
    ]
    return render(("Model", "Version", "Status"), sorted(rows))


def option_table(server: Server) -> str:
    """Returns a table of those options in Triton's table that Backline also has."""
    options = server.options
    lifecycle = options.lifecycle
    metadata = server_metadata(server.engine)
    rows = [
        ("server_id", metadata["name"]),
        ("server_version", metadata["version"]),
        ("server_extensions", " ".join(metadata["extensions"])),
        *(
            (f"model_repository_path[{index}]", str(location))
            for index, location in enumerate(options.repositories)
        ),
        ("model_control_mode", f"MODE_{lifecycle.mode.upper()}"),
        *((f"startup_models_{index}", name) for index, name in enumerate(lifecycle.load_models)),
        ("strict_model_config", str(int(lifecycle.complete_configs))),
        ("model_config_name", options.config_name),
        ("rate_limit", "OFF" if lifecycle.rate_limit is None else "EXEC_COUNT"),
        ("strict_readiness", str(int(lifecycle.strict_readiness))),
        ("exit_timeout", f"{options.limits.drain_timeout:g}"),
        ("cache_enabled", str(int(lifecycle.response_cache is not None))),
    ]
    return render(("Option", "Value"), rows)


def render(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Formats a table with borders. A cell may have several lines."""
    cells = [[[printable(line) for line in cell.split("\n")] for cell in row] for row in (headers, *rows)]
    widths = [max(len(line) for row in cells for line in row[column]) for column in range(len(headers))]
    border = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    lines = [border]
    for index, row in enumerate(cells):
        for number in range(max(map(len, row))):
            texts = (cell[number] if number < len(cell) else "" for cell in row)
            filled = (text.ljust(width) for text, width in zip(texts, widths, strict=True))
            lines.append("| " + " | ".join(filled) + " |")
        if index == 0:
            lines.append(border)
    return "\n".join([*lines, border, ""])
