"""Builds the options of `backline serve`; each can also be set by an environment variable."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeAlias

import click

from backline.engine.byte_size import parse_bytes
from backline.engine.errors import InvalidArgument
from backline.lifecycle.options import LifecycleOptions
from backline.server import ServerOptions
from backline.wire.limits import Limits

Function: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Function], Function]


def option(name: str, *alternatives: str, **settings: Any) -> Decorator:
    """An option that an environment variable can also set, such as BACKLINE_HTTP_PORT for --http-port."""
    variable = "BACKLINE_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    shown = settings.get("default") not in (None, "")
    return click.option(
        name, *alternatives, envvar=variable, show_envvar=True, show_default=shown, **settings
    )


def decorated(function: Function, options: Sequence[Decorator]) -> Function:
    """Adds options to a function, in the order in which `--help` shows them."""
    for add in reversed(options):
        function = add(function)
    return function


_DEFAULTS = {
    field.name: field.default for kind in (ServerOptions, LifecycleOptions, Limits) for field in fields(kind)
}


def fills(name: str, field: str, *alternatives: str, **settings: Any) -> Decorator:
    """An option for a field of ServerOptions, LifecycleOptions or Limits; it has the field's default."""
    default = _DEFAULTS[field]
    return option(
        name, *alternatives, field, **{"default": None if default is MISSING else default, **settings}
    )


def flag(name: str, field: str, text: str) -> Decorator:
    return fills(name, field, is_flag=True, help=text)


def port(field: str, what: str) -> Decorator:
    name = f"--{field.replace('_', '-')}"
    return fills(name, field, type=click.IntRange(0, 65535), help=f"Port for {what}; 0 picks any free port.")


def seconds(name: str, field: str, text: str) -> Decorator:
    return fills(name, field, type=click.FloatRange(0, min_open=True), metavar="SECONDS", help=text)


def count(name: str, field: str, text: str, *, least: int = 1, metavar: str | None = None) -> Decorator:
    return fills(name, field, type=click.IntRange(least), metavar=metavar, help=text)


def path(name: str, field: str, text: str) -> Decorator:
    return fills(name, field, type=click.Path(path_type=Path), help=text)


class Size(click.ParamType):
    """A number of bytes, optionally with a unit."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return value if isinstance(value, int) else parse_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def parsed(
    parse: Callable[[str], str],
) -> Callable[[click.Context, click.Parameter, Sequence[str]], tuple[str, ...]]:
    """A callback that parses each value of a repeatable option."""

    def convert(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
        try:
            return tuple(map(parse, texts))
        except InvalidArgument as error:
            raise click.BadParameter(error.message) from None

    return convert
