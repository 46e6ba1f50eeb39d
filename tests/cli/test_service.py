"""`backline service`: the unit that it writes, and what it asks systemd to do."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backline.cli.service import command, quoted
from support import models
from support.tools import tool

#: A stand-in for systemctl, which needs systemd as the first process: notes its arguments.
SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$2" = show ] && printf 'ActiveState=%s\\nSubState=running\\nMainPID=42\\nNRestarts=0\\n' "$STATE"
[ -z "$FAILURE" ] || { echo "$FAILURE" >&2; exit 1; }
exit 0
"""


@dataclass
class User:
    """A user with a folder of models, whose systemd is a stand-in."""

    home: Path

    @property
    def unit(self) -> Path:
        return self.home / "config" / "systemd" / "user" / "backline.service"

    @property
    def calls(self) -> list[str]:
        calls = self.home / "calls"
        return calls.read_text().splitlines() if calls.exists() else []

    def runs(self, *arguments: str, **environment: str) -> Result:
        own = {
            "PATH": f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "XDG_CONFIG_HOME": str(self.home / "config"),
            "CALLS": str(self.home / "calls"),
            "STATE": "active",
            "FAILURE": "",
        }
        return CliRunner().invoke(command, arguments, env={**own, **environment})

    @property
    def installed(self) -> Result:
        return self.runs("install", "--user", str(self.home / "my models"), "--", "--http-port", "9000")


@pytest.fixture
def user(tmp_path: Path) -> User:
    models.add1(tmp_path / "my models")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "systemctl").write_text(SYSTEMCTL)
    (tmp_path / "bin" / "systemctl").chmod(0o755)
    return User(tmp_path)


def test_install_writes_prints_and_starts_the_unit(user: User) -> None:
    done = user.installed

    assert done.exit_code == 0, done.output
    assert user.unit.read_text() in done.output
    assert str(user.unit) in done.output
    assert user.calls == [
        "--user daemon-reload", "--user enable backline.service", "--user restart backline.service",
    ]  # fmt: skip


def test_the_unit_is_valid(user: User) -> None:
    assert user.installed.exit_code == 0

    checked = subprocess.run(
        [tool("systemd-analyze"), "verify", "--user", "--man=no", str(user.unit)],
        check=False, capture_output=True, text=True, timeout=60,
        env={**os.environ, "XDG_RUNTIME_DIR": str(user.home)},
    )  # fmt: skip

    assert "backline" not in checked.stderr, checked.stderr


def test_relative_paths_keep_their_meaning(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(user.home)

    assert user.runs("install", "--user", "my models", "--no-start").exit_code == 0
    assert f"\nWorkingDirectory={user.home}\n" in user.unit.read_text()
    assert 'serve "my models"\n' in user.unit.read_text()
    assert user.calls == []


def test_options_that_serve_does_not_have_are_refused(user: User) -> None:
    done = user.runs("install", "--user", "models", "--", "--htp-port", "9000")

    assert done.exit_code == 2
    assert "--htp-port" in done.output
    assert not user.unit.exists()


def test_a_unit_of_somebody_else_is_left_alone(user: User) -> None:
    user.unit.parent.mkdir(parents=True)
    user.unit.write_text("[Service]\n")

    for refused in (user.installed, user.runs("uninstall", "--user")):
        assert refused.exit_code
        assert "was not written by this command" in str(refused.exception)
    assert user.unit.read_text() == "[Service]\n"


def test_status_shows_whether_it_runs(user: User) -> None:
    assert user.installed.exit_code == 0

    active, failed = (user.runs("status", "--user", STATE=state) for state in ("active", "failed"))

    assert (active.exit_code, failed.exit_code) == (0, 1)
    assert "state     active (running)" in active.output
    assert "process   42" in active.output


def test_uninstall_stops_and_removes_it(user: User) -> None:
    assert user.installed.exit_code == 0

    done = user.runs("uninstall", "--user")

    assert done.exit_code == 0, done.output
    assert not user.unit.exists()
    assert user.calls[-2:] == ["--user disable --now backline.service", "--user daemon-reload"]
    assert "no service 'backline' is installed" in str(user.runs("status", "--user").exception)


def test_a_failure_of_systemd_is_reported(user: User) -> None:
    done = user.runs("install", "--user", "models", FAILURE="Failed to connect to bus")

    assert "systemctl --user daemon-reload failed: Failed to connect to bus" in str(done.exception)


def test_the_service_is_one_of_the_user(user: User) -> None:
    done = user.runs("install", "models")

    assert done.exit_code == 2
    assert "--user" in done.output


@pytest.mark.parametrize(
    ("argument", "written"),
    [("models", "models"), ("my models", '"my models"'), ("50%", '"50%%"'), ("$HOME", '"$$HOME"'),
     ('a"b', '"a\\"b"'), ("a\\b", '"a\\\\b"'), ("", '""')],
    ids=["plain", "space", "percent", "dollar", "quote", "backslash", "empty"],
)  # fmt: skip
def test_arguments_reach_the_server_as_given(argument: str, written: str) -> None:
    assert quoted(argument) == written
