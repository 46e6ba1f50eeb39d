"""`backline login` and `logout`, and the keys of the other commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from backline.access.keys import generate_key, hash_key
from backline.cli.login import command
from backline_client.client.credentials import StoredKeys
from backline_client.values.errors import InvalidArgument
from support import models
from support.server import ServerProcess, serve
from support.terminal import Terminal

KEY, NARROW, WRONG = generate_key(), generate_key(), generate_key()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("login")
    models.add1(folder / "models")
    (folder / "auth.toml").write_text(
        f'[[keys]]\nname = "user"\nsha256 = "{hash_key(KEY)}"\nscopes = ["infer", "read"]\n'
        f'[[keys]]\nname = "narrow"\nsha256 = "{hash_key(NARROW)}"\nscopes = ["infer"]\n'
    )
    with serve(folder / "models", folder / "log", "--auth", str(folder / "auth.toml")) as running:
        yield running


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path / "config"


def test_a_key_is_asked_for_without_echo_checked_kept_and_forgotten(
    backline: Any, server: ServerProcess
) -> None:
    assert backline("models", "list", "--url", server.url).returncode == 1
    terminal = Terminal("login", server.url)
    try:
        terminal.read_until(f"Key of {server.url}: ")
        terminal.type(KEY + "\n")
        shown = terminal.read_until("Stored the key for .* in '.*keys.json'\n")
        assert terminal.process.wait(30) == 0
    finally:
        terminal.close()
    assert KEY not in shown

    listed = backline("models", "list", "--url", server.url)
    assert (listed.returncode, "add1" in listed.stdout) == (0, True), listed.stderr

    assert "Removed the key" in backline("logout", server.url).stdout
    assert "needs a key" in backline("models", "list", "--url", server.url).stderr
    again = backline("logout", server.url)
    assert (again.returncode, "has no key for" in again.stderr) == (1, True)


def test_no_key_is_no_key(backline: Any, server: ServerProcess) -> None:
    done = CliRunner().invoke(command, [server.url], input="\n")
    assert isinstance(done.exception, InvalidArgument)
    assert done.exception.message.startswith(f"no key for {server.url} was given")


def test_the_doctor_asks_for_a_key(backline: Any, server: ServerProcess) -> None:
    done = backline("doctor", server.url)
    assert (done.returncode, "does not answer" in done.stdout) == (1, False)
    assert "a key with the scope read" in done.stdout


def test_a_key_that_the_server_does_not_know_is_not_kept(
    backline: Any, server: ServerProcess, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(WRONG)
    refused = backline("login", server.url, "--api-key", f"@{tmp_path / 'key'}")
    assert refused.returncode == 1
    assert "refuses the key, so it was not stored: the key is unknown to this server" in refused.stderr
    assert WRONG not in refused.stdout + refused.stderr
    assert not StoredKeys().path.exists()


def test_a_key_that_may_only_infer_is_kept(backline: Any, server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{NARROW}\n")
    assert backline("login", server.url, "--api-key", f"@{tmp_path / 'key'}").returncode == 0
    assert StoredKeys().get(server.url.lower()) == NARROW


@pytest.mark.parametrize("way", ["option", "file", "variable"])
def test_commands_take_a_key(backline: Any, server: ServerProcess, tmp_path: Path, way: str) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    arguments = {"option": ["--api-key", KEY], "file": ["--api-key", f"@{tmp_path / 'key'}"], "variable": []}
    environment = {"BACKLINE_KEY": KEY} if way == "variable" else {}
    run = backline(
        *("infer", "add1", "--input", "INPUT0=zeros:1,16", "--url", server.url, *arguments[way]),
        **environment,
    )
    assert run.returncode == 0, run.stderr
    assert KEY not in run.stdout + run.stderr


def test_a_key_for_an_unencrypted_connection_is_asked_for_with_a_warning(backline: Any) -> None:
    run = backline("login", "http://models.invalid", "--api-key", KEY)
    assert run.returncode == 1
    assert "http://models.invalid:8000 is not encrypted" in run.stderr
    assert "is not encrypted" not in backline("login", "https://models.invalid", "--api-key", KEY).stderr


def test_a_repository_needs_no_key(backline: Any) -> None:
    run = backline("login", "inproc:///models")
    assert (run.returncode, "needs no key" in run.stderr) == (2, True)


def test_the_server_does_not_warn_about_the_key_of_clients(backline: Any) -> None:
    run = backline("serve", "/nowhere", "--http-port", 0, "--no-grpc", "--no-metrics", BACKLINE_KEY=KEY)
    assert "BACKLINE_KEY" not in run.stderr
