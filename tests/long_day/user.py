"""A user who works with commands only, and notes which of them have been used."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from backline.cli.main import command as root
from support.server import ServerProcess, serve


@dataclass(frozen=True, slots=True)
class Said:
    """What a command printed."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass(slots=True)
class User:
    """Runs commands in `folder`, which also holds what commands remember for the user."""

    folder: Path
    server: ServerProcess | None = None
    #: The names of the commands so far, such as "models list".
    used: set[str] = field(default_factory=set)

    def backline(self, *arguments: object, status: int = 0, key: str = "") -> Said:
        """Runs a command, which must exit with `status` and print no traceback.

        With a `key`, it takes precedence over the one of `backline login`.
        """
        words = list(map(str, arguments))
        self.used.add(find(words))
        done = subprocess.run(
            [sys.executable, "-m", "backline", *words],
            cwd=self.folder,
            env=self._environment(key),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, (
            f"{arguments} exited with {done.returncode}: {done.stdout}{done.stderr}"
        )
        assert "Traceback" not in done.stderr
        assert bool(done.stderr.startswith("Error: ")) == (status == 1 and not done.stdout)
        return Said(done.stdout, done.stderr)

    def serve(self, *options: str, ready: bool = True) -> AbstractContextManager[ServerProcess]:
        """Runs a server of the folder `models` until the block ends."""
        self.used.add("serve")
        return serve(self.folder / "models", self.folder / "server.log", *options, ready=ready)

    def _environment(self, key: str) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKLINE_")}
        clean |= {
            "XDG_CONFIG_HOME": str(self.folder / "home"),
            "BACKLINE_AUTH": str(self.folder / "auth.toml"),
        }
        if self.server is not None:
            clean["BACKLINE_URL"] = self.server.url
        return clean | ({"BACKLINE_KEY": key} if key else {})


def leaves(group: click.Group = root, before: str = "") -> Iterator[str]:
    """The names of all commands and subcommands that do something, such as "models list"."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            yield from leaves(found, f"{before}{name} ")
        else:
            yield before + name


def find(words: list[str]) -> str:
    """The command that a command line runs."""
    return next((name for name in leaves() if words[: len(name.split())] == name.split()), "")
