"""Builds the options of `backline serve`. Each can also be set by an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from msgspec.structs import asdict

from backline.access.keys import ENVIRONMENT_KEYS
from backline.cli.numbers import Number, WholeNumber
from backline.cli.options import PREFIX, Decorator, Function, option
from backline.engine.numbers import parse_bytes
from backline.lifecycle.options import LifecycleOptions
from backline.server import ServerOptions
from backline.wire.limits import Limits
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

#: Environment variables that set no option of `backline serve`, because other code reads them.
_OTHERS = frozenset({"BACKLINE_DEBUG", "BACKLINE_KEY", "BACKLINE_URL", *ENVIRONMENT_KEYS})
#: Variables that Kubernetes sets in every container if a service has the name backline or backline-something.
_OF_KUBERNETES = (
    r"BACKLINE_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
#: Prefixes of the values that Kubernetes sets as the port of a service. These values are URLs.
_LINKS = ("tcp://", "udp://", "sctp://")


def unknown_variables(command: click.Command, environment: Mapping[str, str]) -> list[str]:
    """Returns a warning for each environment variable that starts with BACKLINE_ but sets no option."""
    known = {str(param.envvar) for param in command.params if param.envvar} | _OTHERS
    warnings = []
    for name in sorted(name for name in environment if name.startswith(PREFIX) and name not in known):
        if re.fullmatch(_OF_KUBERNETES, name) or (
            name.endswith("_PORT") and environment[name].startswith(_LINKS)
        ):
            continue
        near = nearest(name.removeprefix(PREFIX), [other.removeprefix(PREFIX) for other in sorted(known)], 3)
        hint = (
            f"did you mean {' or '.join(PREFIX + other for other in near)}?"
            if near
            else "`backline serve --help-all` lists all"
        )
        warnings.append(f"the environment variable {name} has no effect; {hint}")
    return warnings


def decorated(function: Function, options: Sequence[Decorator]) -> Function:
    """Adds options to a function. `--help` shows them in the given order."""
    for add in reversed(options):
        function = add(function)
    return function


_DEFAULTS = asdict(ServerOptions(())) | asdict(LifecycleOptions()) | asdict(Limits())


def fills(name: str, field: str, *alternatives: str, **settings: Any) -> Decorator:
    """Returns an option that sets a field of ServerOptions, LifecycleOptions or Limits.

    The default of the option is that of the field, unless `settings` contains another.
    """
    return option(name, *alternatives, field, **{"default": _DEFAULTS[field], **settings})


def flag(name: str, field: str, text: str) -> Decorator:
    return fills(name, field, is_flag=True, help=text)


class PortOption(click.Option):
    """An option for a port. It ignores environment variables that Kubernetes sets for services.

    For a service called backline-grpc, Kubernetes sets BACKLINE_GRPC_PORT=tcp://10.0.0.1:8001 in every
    container. Serverless platforms that follow Knative's container contract choose the HTTP port and set PORT
    to this port. They also set K_SERVICE, so if K_SERVICE is set, PORT is the default of --http-port.
    """

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        if value is not None and value.startswith(_LINKS):
            value = None
        if value is None and self.name == "http_port" and "K_SERVICE" in os.environ:
            return os.environ.get("PORT")
        return value


def port(field: str, what: str) -> Decorator:
    name = f"--{field.replace('_', '-')}"
    return fills(
        name,
        field,
        cls=PortOption,
        type=WholeNumber(0, 65535),
        help=f"Port for {what}; 0 picks any free port.",
    )


def seconds(name: str, field: str, text: str) -> Decorator:
    return fills(name, field, type=Number(0, min_open=True), metavar="SECONDS", help=text)


def count(name: str, field: str, text: str, *, least: int = 1, metavar: str | None = None) -> Decorator:
    return fills(name, field, type=WholeNumber(least), metavar=metavar, help=text)


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
    """Returns a callback that parses each value of a repeatable option."""

    def convert(context: click.Context, parameter: click.Parameter, texts: Sequence[str]) -> tuple[str, ...]:
        try:
            return tuple(map(parse, texts))
        except InvalidArgument as error:
            raise click.BadParameter(error.message) from None

    return convert
