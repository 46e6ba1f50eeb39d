"""The log options of `backline serve`, and the log they configure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import click

from backline.cli.serve.option import Decorator, decorated, option
from backline.observe.log.server_log import ServerLog
from backline.observe.log.settings import FORMATS, LEVELS, LogFormat, LogLevel, LogSettings


def _severity(name: str, text: str) -> Decorator:
    return option(name, type=bool, metavar="true|false", help=text)


_OPTIONS: tuple[Decorator, ...] = (
    option(
        "--log-level",
        type=click.Choice(LEVELS, case_sensitive=False),
        default="warning",
        help="The least severity that is logged.",
    ),
    _severity("--log-info", "Log informational lines, whatever --log-level says."),
    _severity("--log-warning", "The same for warnings."),
    _severity("--log-error", "The same for errors."),
    option(
        "--log-verbose",
        type=click.IntRange(0),
        metavar="LEVEL",
        help="1: also a line per request, and verbose messages from models; 2: everything. Default: 0, or 2"
        " with"
        " --log-level debug.",
    ),
    option(
        "--log-file",
        type=click.Path(path_type=Path),
        help="Log to this file instead of stderr; reopened when it is moved away.",
    ),
    option(
        "--log-format",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="default",
        help="The format of lines.",
    ),
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the log options to a command, which receives them as `log`, a LogSettings."""

    @wraps(command)
    def with_settings(
        *arguments: Any,
        log_level: LogLevel,
        log_info: bool | None,
        log_warning: bool | None,
        log_error: bool | None,
        log_verbose: int | None,
        log_file: Path | None,
        log_format: LogFormat,
        **others: Any,
    ) -> Any:
        settings = LogSettings.of_level(
            log_level,
            info=log_info,
            warning=log_warning,
            error=log_error,
            verbose_level=log_verbose,
            file=None if log_file is None else str(log_file),
            format=log_format,
        )
        return command(*arguments, log=settings, **others)

    return decorated(with_settings, _OPTIONS)


@contextmanager
def installed_log(settings: LogSettings) -> Iterator[ServerLog]:
    """Installs the program's log for a `with` block. Raises UsageError if the log file cannot be opened."""
    try:
        log = ServerLog(settings)
    except OSError as error:
        raise click.UsageError(f"--log-file {settings.file}: {error.strerror or error}") from None
    with log.installed():
        yield log
