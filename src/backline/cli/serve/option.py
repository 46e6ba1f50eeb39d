"""Options of `backline serve`, which are environment variables as well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import click

Function: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Function], Function]


def option(name: str, *alternatives: str, **settings: Any) -> Decorator:
    """An option that is an environment variable too: --http-port is BACKLINE_HTTP_PORT."""
    variable = "BACKLINE_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    shown = settings.get("default") not in (None, "")
    return click.option(
        name, *alternatives, envvar=variable, show_envvar=True, show_default=shown, **settings
    )


def decorated(function: Function, options: Sequence[Decorator]) -> Function:
    """The function with all options, which `--help` shows in their order."""
    for add in reversed(options):
        function = add(function)
    return function
