"""The state of the worker process for `triton_python_backend_utils`: its model, its channel and its log."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from enum import IntEnum
from pathlib import Path
from typing import ClassVar

from backline.workers.channel.protocol import Kind, Log, WorkerLoad
from backline.workers.child.caller import Caller
from backline_client.values.errors import Unavailable

_OUTSIDE = "triton_python_backend_utils works only in a worker process of a server"


class _Worker:
    load: WorkerLoad | None = None
    caller: Caller | None = None
    instance: str = ""


def begin(load: WorkerLoad, caller: Caller) -> None:
    """Stores the LOAD message and the channel of this worker, before its model is imported."""
    _Worker.load, _Worker.caller = load, caller


def current() -> WorkerLoad:
    """Returns the LOAD message of this worker. Raises RuntimeError outside of a worker."""
    if _Worker.load is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.load


def caller() -> Caller:
    """Returns the channel to the server. Raises RuntimeError outside of a worker."""
    if _Worker.caller is None:
        raise RuntimeError(_OUTSIDE)
    return _Worker.caller


def name_instance(name: str) -> None:
    """Stores the instance name for Triton's error texts."""
    _Worker.instance = name


def instance() -> str:
    """Returns the instance name for Triton's error texts."""
    return _Worker.instance


def get_model_dir() -> str:
    """Returns the folder with the files of the model's version."""
    return str(Path(current().path).parent)


class LogLevel(IntEnum):
    """Log levels, with Triton's numbers."""

    INFO = 0
    WARNING = 1
    ERROR = 2
    VERBOSE = 3


_LEVELS = {
    LogLevel.INFO: logging.INFO,
    LogLevel.WARNING: logging.WARNING,
    LogLevel.ERROR: logging.ERROR,
    LogLevel.VERBOSE: logging.DEBUG,
}


class Logger:
    """The server's log. Lines include the model, its version, and the caller's file and line."""

    INFO: ClassVar = LogLevel.INFO
    WARNING: ClassVar = LogLevel.WARNING
    ERROR: ClassVar = LogLevel.ERROR
    VERBOSE: ClassVar = LogLevel.VERBOSE

    @staticmethod
    def log(message: str, level: LogLevel = LogLevel.INFO) -> None:
        _log(message, level)

    @staticmethod
    def log_info(message: str) -> None:
        _log(message, LogLevel.INFO)

    @staticmethod
    def log_warn(message: str) -> None:
        _log(message, LogLevel.WARNING)

    @staticmethod
    def log_error(message: str) -> None:
        _log(message, LogLevel.ERROR)

    @staticmethod
    def log_verbose(message: str) -> None:
        """Logs a message that is shown at verbose level 1 or higher."""
        _log(message, LogLevel.VERBOSE)


def _log(message: str, level: LogLevel) -> None:
    if not isinstance(message, str):
        raise TypeError(f"Logger: the message is a {type(message).__name__}, expected a str")
    code, line = sys._getframe(2).f_code, sys._getframe(2).f_lineno
    text = f"{os.path.basename(code.co_filename)}:{line}: {message}"
    with suppress(Unavailable):  # the server has ended, or this process is a fork
        caller().tell(Kind.LOG, Log(_LEVELS[LogLevel(level)], text))


# An attribute, as in Triton. It is set here because, in the class body, the name would hide the enum from the
# annotations of the methods.
Logger.LogLevel = LogLevel  # type: ignore[attr-defined]
