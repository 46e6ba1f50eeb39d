"""The log settings, with their names in Triton's logging extension.

The extension is described in docs/protocol/extension_logging.md of triton-inference-server/server.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

from msgspec import Struct
from msgspec.structs import asdict, replace

from backline_client.values.control import LogValue
from backline_client.values.errors import InvalidArgument, Unsupported
from backline_client.values.spelling import nearest

LogFormat: TypeAlias = Literal["default", "ISO8601", "json"]
FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
#: The style of the lines in the formats default and ISO8601.
LogStyle: TypeAlias = Literal["backline", "triton"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[LogLevel, ...] = get_args(LogLevel)
_HIGHEST = (1 << 31) - 1
_EXPECTED = {bool: "boolean", int: "int32", str: "string"}


class LogSettings(Struct, frozen=True):
    """The settings of the log: which severities are logged, in which format, and to which file (`file` is
    empty for stderr).

    A `verbose_level` of 1 adds a line per request, and verbose messages from models; 2 adds all messages from
    the server and its libraries.
    """

    file: str = ""
    info: bool = False
    warning: bool = True
    error: bool = True
    verbose_level: int = 0
    format: LogFormat = "default"
    #: The style of the lines. It is fixed when the server starts, and is not shown to clients.
    style: LogStyle = "backline"

    @classmethod
    def of_level(cls, level: LogLevel, **others: Any) -> LogSettings:
        """Returns settings that log the severity `level` and all higher severities; "debug" logs everything.
        `others` are further settings; those that are None have no effect.
        """
        rank = LEVELS.index(level)
        settings = cls(info=rank <= 1, warning=rank <= 2, verbose_level=0 if rank else 2)
        return replace(settings, **{name: value for name, value in others.items() if value is not None})

    def shown(self) -> dict[str, LogValue]:
        """Returns the settings, with Triton's names."""
        return {f"log_{name}": value for name, value in asdict(self).items() if name != "style"}

    def changed(self, changes: Mapping[str, object]) -> LogSettings:
        """Returns a copy of the settings with `changes`, whose keys are Triton's names.

        Raises InvalidArgument for an unknown name or an invalid value, and Unsupported for a change of the
        log file, as Triton does.
        """
        shown = self.shown()
        for name, value in changes.items():
            if name not in shown:
                raise InvalidArgument(_unknown(name, tuple(shown)))
            if name == "log_file":
                raise Unsupported("log file location can not be updated through network protocol")
            kind = type(shown[name])
            if type(value) is not kind or (isinstance(value, int) and not 0 <= value <= _HIGHEST):
                raise InvalidArgument(f"expect {_EXPECTED[kind]} for '{name}', got {_short(value)}")
            if name == "log_format" and value not in FORMATS:
                raise InvalidArgument(
                    f"invalid argument for log_format, got: {_short(value)}. Expected {', '.join(FORMATS)}"
                )
        fields: dict[str, Any] = {name.removeprefix("log_"): value for name, value in changes.items()}
        return replace(self, **fields)


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = nearest(name[:64], known, 1)
    hint = f"Did you mean '{near[0]}'?" if near else f"Expected one of {', '.join(known)}"
    return f"unknown log setting '{_short(name)}'. {hint}"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 64 else f"{text[:64]}..."
