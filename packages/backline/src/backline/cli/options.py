"""The options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click

Function: TypeAlias = Callable[..., Any]
Decorator: TypeAlias = Callable[[Function], Function]

#: The start of the names of environment variables that set options.
PREFIX = "BACKLINE_"


def option(name: str, *alternatives: str, **settings: Any) -> Decorator:
    """Returns an option that an environment variable can also set: BACKLINE_HTTP_PORT sets --http-port."""
    variable = PREFIX + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    shown = settings.get("default") not in (None, "")
    return click.option(
        name, *alternatives, envvar=variable, show_envvar=True, show_default=shown, **settings
    )


def json_option(text: str = "Print JSON.") -> Decorator:
    """Returns the option --json. The command receives `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help=text)


def version_option(default: str = "the server's choice") -> Decorator:
    """Returns the option --model-version; `default` says what it means if it is not given."""
    return click.option("--model-version", default="", help=f"The version; default: {default}.")


def result_option(name: str, field: str, text: str) -> Decorator:
    """Returns an option for a file to write. Its folder must exist."""
    return click.option(
        name, field, type=click.Path(dir_okay=False, path_type=Path), callback=_writable, help=text
    )


def _writable(context: click.Context, parameter: click.Parameter, path: Path | None) -> Path | None:
    if path is not None and not path.absolute().parent.is_dir():
        raise click.BadParameter(f"'{path}' cannot be written: create its folder first")
    return path


trust_pickle_option = option(
    "--trust-pickle",
    is_flag=True,
    help="Load models that can execute code when loaded: pickles and machine code.",
)
trust_skops_option = option(
    "--trust-skops-type",
    "trust_skops_types",
    multiple=True,
    metavar="TYPE",
    help="Load skops files with this type, such as sklearn.tree._tree.Tree; repeatable.",
)
trust_code_option = option(
    "--trust-remote-code",
    is_flag=True,
    help="Run code (Python, TorchScript, torch.export) from remote repositories and from files in load"
    " requests.",
)
state_folder_option = option(
    "--state-dir",
    "state_folder",
    type=click.Path(path_type=Path),
    help="Folder for labels, the audit log, recorded requests and measurements; default: one for this set of"
    " repositories.",
)
cache_folder_option = option(
    "--cache-dir",
    "cache_folder",
    type=click.Path(path_type=Path),
    help="Folder for files of remote repositories, and for environments; default: the user's cache folder.",
)
