"""Where the environments are, and how one is shown."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from backline.environments.store import Environments, StoredEnvironment, default_folder


def store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --cache-dir to a command, which gets `store`."""
    return click.option(
        "--cache-dir",
        "store",
        type=click.Path(path_type=Path),
        envvar="BACKLINE_CACHE_DIR",
        show_envvar=True,
        callback=lambda context, option, value: Environments(default_folder(value)),
        help="The folder that `backline serve --cache-dir` names; default: in the user's cache.",
    )(function)


def document(entry: StoredEnvironment) -> dict[str, Any]:
    """An environment as JSON."""
    about = entry.about
    return {
        "environment": entry.digest,
        "file": about.file,
        "python": about.python,
        "packages": about.packages,
        "bytes": about.bytes,
        "built": about.built,
        "last_used": entry.last_used,
        "in_use": entry.in_use,
        "models": [{"model": user.model, "folder": user.model_folder} for user in entry.users],
    }


def ago(moment: float) -> str:
    """How long ago a moment of time.time() was: "3 h ago"."""
    seconds = max(time.time() - moment, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"
