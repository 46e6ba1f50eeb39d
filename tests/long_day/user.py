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
    """Runs commands in `folder`. With a `key`, commands that talk to the server send it."""

    folder: Path
    server: ServerProcess | None = None
    key: str = ""
    #: The names of the commands so far, such as "models list".
    used: set[str] = field(default_factory=set)

    def backline(self, *arguments: object, status: int = 0, key: str | None = None) -> Said:
        """Runs a command, which must exit with `status` and print no traceback."""
        command = self._command(arguments, key)
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment(),
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

    def _command(self, arguments: tuple[object, ...], key: str | None) -> list[str]:
        words = list(map(str, arguments))
        used = find(words)
        self.used.add(used)
        key = self.key if key is None else key
        connects = self.server is not None and "--url" in {
            option for param in leaf(used).params for option in param.opts
        }
        if connects and key and "--url" not in words:
            words += ["--header", f"Authorization: Bearer {key}"]
        return [sys.executable, "-m", "backline", *words]

    def _environment(self) -> dict[str, str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("BACKLINE_")}
        address = {} if self.server is None else {"BACKLINE_URL": self.server.url}
        return {**clean, **address, "BACKLINE_AUTH": str(self.folder / "auth.toml")}


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


def leaf(name: str) -> click.Command:
    found: click.Command = root
    for word in name.split():
        assert isinstance(found, click.Group)
        below = found.get_command(click.Context(found), word)
        assert below is not None
        found = below
    return found
