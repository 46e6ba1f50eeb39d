"""`backline service`: installs a server as the current user's systemd service."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from backline.cli.command import CommandGroup
from backline_client.values.errors import AlreadyExists, NotFound, Unavailable

#: The first line of every unit that this command writes. The command does not replace or remove units without
#: this line.
_MARK = "# Written by `backline service install --user`."
_UNIT = """\
{mark}
[Unit]
Description=Backline model server ({name})

[Service]
Type=notify
# The folder in which the service was installed. Relative paths in the command start here.
WorkingDirectory={folder}
ExecStart={command}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
# Loading the models may take a long time. Requests in flight get 30 s, runs in progress another 5 s.
TimeoutStartSec=30min
TimeoutStopSec=45
NoNewPrivileges=yes

[Install]
WantedBy=default.target
"""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_EPILOG = """\b
Examples:
  backline service install --user models/
  backline service install --user models/ -- --http-port 9000 --model-control-mode poll
  backline service status --user
  backline service uninstall --user

Everything after -- is passed to `backline serve`. docs/deploy/systemd.md has the units for a system-wide
service."""


@dataclass(frozen=True, slots=True)
class UserUnit:
    """The systemd unit of a service of the current user."""

    name: str

    @property
    def path(self) -> Path:
        home = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(home) / "systemd" / "user" / f"{self.name}.service"

    def check_own(self) -> None:
        """Raises AlreadyExists if the unit exists but was not written by this command."""
        if self.path.exists() and not self.path.read_text(errors="replace").startswith(_MARK):
            raise AlreadyExists(
                f"'{self.path}' was not written by this command, so it was not changed: choose another --name"
            )


def _user_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--user",
        "for_user",
        is_flag=True,
        required=True,
        help="Use the service of the current user. Required.",
    )(function)


def _name_option(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--name", default="backline", show_default=True, callback=_check_name, help="The name of the service."
    )(function)


def _check_name(context: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _NAME.fullmatch(value):
        raise click.BadParameter(
            "expected at most 100 letters, digits, '_', '.' and '-', the first a letter or digit"
        )
    return value


@click.command("install", epilog=_EPILOG)
@click.argument("repositories", nargs=-1, required=True)
@_user_option
@_name_option
@click.option("--no-start", is_flag=True, help="Only write the unit.")
@click.pass_context
def install(
    context: click.Context, repositories: tuple[str, ...], for_user: bool, name: str, no_start: bool
) -> None:
    """Write a unit that serves REPOSITORIES, print it, and start it now and at each login.

    A service of the same name is replaced and restarted.
    """
    _check(context, repositories)
    unit = UserUnit(name)
    unit.check_own()
    command = " ".join(map(quoted, [sys.executable, "-m", "backline", "serve", *repositories]))
    folder = str(Path.cwd()).replace("%", "%%")
    text = _UNIT.format(mark=_MARK, name=name, folder=folder, command=command)
    unit.path.parent.mkdir(parents=True, exist_ok=True)
    unit.path.write_text(text)
    print(f"Wrote '{unit.path}':\n")
    print(text)
    if no_start:
        print(f"Start it: systemctl --user daemon-reload && systemctl --user enable --now {name}")
        return
    _systemctl("daemon-reload")
    _systemctl("enable", f"{name}.service")
    _systemctl("restart", f"{name}.service")
    print(f"Started '{name}'. Its log: journalctl --user --unit {name}")
    print("It stops when you log out, unless you run: loginctl enable-linger")


def _check(context: click.Context, arguments: tuple[str, ...]) -> None:
    """Raises click.UsageError if `backline serve` would not accept the arguments."""
    from backline.cli.serve import command as serve

    serve.make_context("backline serve", list(arguments), parent=context.parent)


def quoted(argument: str) -> str:
    """Quotes an argument for ExecStart, because systemd expands % and $ there and splits at spaces."""
    escaped = argument.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return (
        f'"{escaped}"' if escaped != argument or not argument or re.search(r"[\s';]", argument) else argument
    )


@click.command("uninstall")
@_user_option
@_name_option
def uninstall(for_user: bool, name: str) -> None:
    """Stop the service, and remove its unit."""
    unit = _installed(name)
    unit.check_own()
    _systemctl("disable", "--now", f"{name}.service")
    unit.path.unlink()
    _systemctl("daemon-reload")
    print(f"Stopped '{name}' and removed '{unit.path}'")


@click.command("status")
@_user_option
@_name_option
def status(for_user: bool, name: str) -> None:
    """Show whether the service is running. The exit status is 1 if it is not."""
    unit = _installed(name)
    state = _systemctl("show", "--property=ActiveState,SubState,MainPID,NRestarts", f"{name}.service")
    fields = dict(line.split("=", 1) for line in state.splitlines() if "=" in line)
    print(f"unit      {unit.path}")
    print(f"state     {fields.get('ActiveState', 'unknown')} ({fields.get('SubState', 'unknown')})")
    print(f"process   {fields.get('MainPID', 'unknown')}")
    print(f"restarts  {fields.get('NRestarts', 'unknown')}")
    if fields.get("ActiveState") != "active":
        sys.exit(1)


def _installed(name: str) -> UserUnit:
    unit = UserUnit(name)
    if not unit.path.exists():
        raise NotFound(f"no service '{name}' is installed: there is no '{unit.path}'")
    return unit


def _systemctl(*arguments: str) -> str:
    """Runs `systemctl --user` and returns its output. Raises Unavailable, with its stderr, if it fails."""
    program = shutil.which("systemctl")
    if program is None:
        raise Unavailable(
            "systemctl was not found: this command needs systemd; elsewhere, run 'backline serve' under"
            " another service manager"
        )
    done = subprocess.run([program, "--user", *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip() or f"exit status {done.returncode}"
        raise Unavailable(f"systemctl --user {' '.join(arguments)} failed: {reason}")
    return done.stdout


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Install, show and remove a server as a service of this user, which systemd runs."""


for each in (install, status, uninstall):
    command.add_command(each)
