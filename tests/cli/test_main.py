"""The command line as a whole: help, version, wrong names, errors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import click
import pytest

import backline as package
from backline.cli.commands import COMMANDS, CommandPlugin

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]


def test_version(backline: Run) -> None:
    assert backline("--version").stdout == f"backline, version {package.__version__}\n"


@pytest.mark.parametrize(
    "command", [(), ("serve",), ("infer",), ("models",), ("models", "list"), ("models", "show"), ("bench",)]
)
def test_every_command_has_help_with_an_example(backline: Run, command: tuple[str, ...]) -> None:
    done = backline(*command, "--help")
    assert done.returncode == 0
    assert f"  backline {' '.join(command)}".rstrip() in done.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("srve", "x"), "Did you mean 'serve'?"),
        (("frobnicate",), "The commands are serve, "),
        (("serve", "--htp-port", "1", "x"), "Did you mean --http-port or --reuse-http-port or --grpc-port?"),
        (("serve", "--prot", "1", "x"), "Did you mean --http-port or --grpc-port or --metrics-port?"),
        (("serve",), "No repository was given"),
        (("serve", "x", "--http-port", "70000"), "'70000' is not a whole number from 0 to 65535."),
        (
            ("serve", "x", "--http-port", "abc"),
            "'--http-port' (env var: 'BACKLINE_HTTP_PORT'): 'abc' is",
        ),
        (("serve", "x", "--max-connections", "0"), "'0' is not a whole number of at least 1."),
        (("serve", "x", "--max-peer-share", "2"), "'2' is not a number above 0 and of at most 1."),
        (("bench", "m", "--duration", "long"), "'long' is not a number above 0."),
        (("serve", "x", "--http-port", "9", "--grpc-port", "9"), "are both 9"),
        (("serve", "x", "--ssl-key", "k"), "both --ssl-certificate and --ssl-key"),
        (("serve", "x", "--idle-timeout", "0"), "--idle-timeout"),
        (("bench", "m", "-c", "0"), "not a list of positive numbers"),
        (("bench", "m", "--json", "/nowhere/x.json"), "create its folder first"),
        (("infer", "m", "-o", "x.txt"), "is not a .npz, .npy or .json file"),
        (("infer", "m", "--header", "x"), "is not of the form NAME:VALUE"),
        (("config", "explian", "models"), "Did you mean 'explain'?"),
    ],
)
def test_wrong_usage_exits_with_status_2_and_a_hint(
    backline: Run, arguments: tuple[str, ...], hint: str
) -> None:
    done = backline(*arguments)
    assert done.returncode == 2
    assert hint in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("group", ["models", "config", "env"])
def test_the_help_of_a_group_shows_full_sentences(backline: Run, group: str) -> None:
    done = backline(group, "--help")
    assert done.returncode == 0
    assert "..." not in done.stdout.partition("[ARGS]...")[2]


def test_an_error_is_one_line(backline: Run) -> None:
    done = backline("models", "list", "--url", "http://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: connection refused by http://127.0.0.1:1")
    assert done.stderr.count("\n") == 1


def test_an_error_of_the_operating_system_names_the_file(backline: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for arguments in (("new", tmp_path / "file" / "tagger"), ("keys", "create", "a", "--auth", "no/a.toml")):
        done = backline(*arguments)
        where = str(arguments[-1])
        assert done.returncode == 1
        assert done.stderr.startswith(f"Error: '{where}"), done.stderr
        assert done.stderr.endswith((": Not a directory\n", ": No such file or directory\n"))


def test_a_log_file_that_cannot_be_opened_is_wrong_usage(backline: Run, tmp_path: Path) -> None:
    done = backline("serve", tmp_path, "--log-file", "/nowhere/log")

    assert done.returncode == 2
    assert done.stderr.endswith("Error: --log-file /nowhere/log: No such file or directory\n")


def test_a_missing_repository_gets_a_suggestion(backline: Run, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    done = backline("serve", tmp_path / "modles")

    assert done.returncode == 1
    assert f"'{tmp_path}/modles' does not exist. Did you mean '{tmp_path}/models'?" in done.stderr


def test_debugging_shows_the_traceback(backline: Run) -> None:
    done = backline("models", "list", "--url", "http://127.0.0.1:1", BACKLINE_DEBUG="1")
    assert "Traceback" in done.stderr


def test_help_lists_every_command_in_a_group(backline: Run) -> None:
    shown = backline("--help").stdout

    for record in COMMANDS.built_in:
        _, _, rest = shown.partition(f"\n{record.group}:\n")
        (line,) = re.findall(rf"^  {record.name} +(.+)$", rest.partition("\n\n")[0], re.MULTILINE)
        assert record.summary.startswith(line)
    assert len({record.name for record in COMMANDS.built_in}) == len(COMMANDS.built_in)


@pytest.mark.parametrize("record", COMMANDS.built_in, ids=lambda record: record.name)
def test_every_record_leads_to_its_command(record: CommandPlugin) -> None:
    assert isinstance(record.load(), click.Command)


#: The variables by which bash asks for the commands that begin with "mod".
COMPLETION = {"_BACKLINE_COMPLETE": "bash_complete", "COMP_WORDS": "backline mod", "COMP_CWORD": "1"}


@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        (["--help"], {}, "  models "),
        (
            [],
            {"_BACKLINE_COMPLETE": "bash_complete", "COMP_WORDS": "backline mod", "COMP_CWORD": "1"},
            "models",
        ),
    ],
    ids=["help", "completion"],
)
def test_listing_commands_imports_none_of_them(
    arguments: list[str], variables: dict[str, str], expected: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "backline", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **variables},
    )
    imported = set(re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE))

    assert expected in done.stdout
    assert "backline.cli.commands" in imported
    assert imported.isdisjoint(record.target.partition(":")[0] for record in COMMANDS.built_in)


def test_serving_imports_little() -> None:
    """Nearly all of the time of a start is spent on imports, about 0.25 ms for each module."""
    program = """
import re, sys

compile, compiling = re.compile, []
def counted(*given):
    compiling.append(sys._getframe(1).f_globals["__name__"])
    return compile(*given)
re.compile = counted

import backline.cli.main as main
main.command.get_command(None, "serve")
for names in (sys.modules, compiling):
    print(len([name for name in names if name.partition(".")[0] == "backline"]), end=" ")
print()
print(*sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    numbers, names = done.stdout.splitlines()
    imported, compiled = map(int, numbers.split())
    needless = """
        backline_client.client backline.plugins.dialects.console backline.dialects.open_inference.grpc.service
        backline.plugins.fleet.lane backline.plugins.ray backline.wire.http2.connection
        backline.wire.websocket.connection
        backline.workers.child backline.workers.process google.protobuf grpc matplotlib multiprocessing
        numpy.ma numpy.random onnxruntime prometheus_client psutil rich tempfile
    """

    assert set(needless.split()).isdisjoint(names.split())
    # Raise these only for modules and regular expressions that nearly every server needs before it is ready.
    assert imported <= 252
    assert compiled <= 21
