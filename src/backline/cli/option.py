"""Options of `backline serve`, which are environment variables as well."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def option(name: str, *alternatives: str, **settings: Any) -> Callable[[Command], Command]:
    """An option that is an environment variable too: --http-port is BACKLINE_HTTP_PORT."""
    variable = "BACKLINE_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    return click.option(
        name, *alternatives, envvar=variable, show_envvar=True, show_default=settings.get("default") is not None, **settings
    )
