"""The options of the log, and the log that they ask for."""

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
        help="What the log holds, and what is worse.",
    ),
    _severity("--log-info", "Whether the log holds what is worth knowing, whatever --log-level says."),
    _severity("--log-warning", "Whether it holds warnings."),
    _severity("--log-error", "Whether it holds errors."),
    option(
        "--log-verbose",
        type=click.IntRange(0),
        metavar="LEVEL",
        help="1: a line for each request, and what models say verbosely; 2: everything. Default: 0, with --log-level debug 2.",
    ),
    option(
        "--log-file",
        type=click.Path(path_type=Path),
        help="Write the log there, not to stderr; one that is moved away is begun anew.",
    ),
    option(
        "--log-format",
        type=click.Choice(FORMATS, case_sensitive=False),
        default="default",
        help="How its lines look.",
    ),
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options of the log, and its function their meaning as `log`."""

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
    """Within it the log of this program. Raises UsageError when its file cannot be opened."""
    try:
        log = ServerLog(settings)
    except OSError as error:
        raise click.UsageError(f"--log-file {settings.file}: {error.strerror or error}") from None
    with log.installed():
        yield log
