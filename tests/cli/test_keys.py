"""`backline keys`: the file that it writes, and what it prints."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from backline.access.auth_file import make_policy, read_auth_file
from backline.access.keys import hash_key
from backline.access.scope import Scope
from backline.cli.keys import command


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "auth.toml"


def keys(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(command, [*arguments, "--auth", str(file)])


def test_a_created_key_works_and_is_not_in_the_file(file: Path) -> None:
    made = keys(file, "create", "app", "--scope", "infer", "--model", "add*", "--expires", "2h")
    assert made.exit_code == 0
    key = made.stdout.strip()
    assert key not in file.read_text()
    assert "only time" in made.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    identity = make_policy(read_auth_file(file), {}).keys[hash_key(key)]
    assert identity.may(Scope.INFER, "add1")
    assert not identity.may(Scope.INFER, "sub1")
    assert not identity.may(Scope.READ, "add1")
    assert identity.expires is not None
    assert 7000 < identity.expires - time.time() <= 7200


def test_keys_are_listed_without_the_keys(file: Path) -> None:
    key = keys(file, "create", "app").stdout.strip()
    keys(file, "create", "old", "--scope", "manage", "--expires", "2020-01-01")
    assert "has already expired" in keys(file, "rotate", "old", "--expires", "2020-01-01").stderr
    listed = keys(file, "list").stdout
    assert "infer, read" in listed
    assert "expired" in listed
    assert key not in listed
    document = json.loads(keys(file, "list", "--json").stdout)
    assert [entry["name"] for entry in document["keys"]] == ["app", "old"]
    assert hash_key(key) not in keys(file, "list", "--json").stdout


def test_a_key_can_be_created_with_a_quota(file: Path) -> None:
    limits = ("--rate", "100", "--burst", "200", "--max-in-flight", "8", "--bytes-per-second", "1e6")
    keys(file, "create", "app", *limits)
    keys(file, "create", "other", "--rate", "0.5")
    file.write_text(file.read_text() + '[[keys.quotas]]\nmodels = ["big-*"]\nmax_in_flight = 1\n')
    keys(file, "rotate", "app")  # keeps it
    listed = json.loads(keys(file, "list", "--json").stdout)["keys"]
    assert [entry["quotas"] for entry in listed] == [
        [
            {
                "requests_per_second": 100,
                "burst": 200,
                "max_in_flight": 8,
                "bytes_per_second": 1e6,
            }
        ],
        [{"requests_per_second": 0.5}, {"max_in_flight": 1, "models": ["big-*"]}],
    ]
    shown = keys(file, "list").stdout
    assert "100/s (burst 200), 8 in flight, 1e+06 B/s" in shown
    assert "0.5/s; 1 in flight to big-*" in shown
    assert [
        identity.quotas[0].requests_per_second
        for identity in make_policy(read_auth_file(file), {}).keys.values()
    ] == [100, 0.5]


def test_rotating_keeps_the_permissions_and_ends_the_old_key(file: Path) -> None:
    old = keys(file, "create", "app", "--scope", "manage", "--model", "a").stdout.strip()
    new = json.loads(keys(file, "rotate", "app", "--json").stdout)["key"]
    policy = make_policy(read_auth_file(file), {})
    assert hash_key(old) not in policy.keys
    assert policy.keys[hash_key(new)].may(Scope.MANAGE, "a")
    assert not policy.keys[hash_key(new)].may(Scope.MANAGE, "b")


def test_editing_keeps_comments_and_other_tables(file: Path) -> None:
    file.write_text('# ours\n[anonymous]\nscopes = ["read"]  # the dashboard\n')
    keys(file, "create", "app")
    keys(file, "create", "other")
    assert keys(file, "revoke", "app").stdout == "Revoked 'app'\n"
    text = file.read_text()
    assert "# ours" in text
    assert "# the dashboard" in text
    document = read_auth_file(file)
    assert [entry.name for entry in document.keys] == ["other"]
    assert document.anonymous.scopes == [Scope.READ]


def test_editing_keeps_who_may_read_the_file(file: Path) -> None:
    keys(file, "create", "app")
    file.chmod(0o640)
    if os.geteuid() == 0:  # as for a server with its own user and group
        os.chown(file, 12345, 12346)
    before = file.stat()

    for arguments in (("create", "other"), ("rotate", "app"), ("revoke", "other")):
        assert keys(file, *arguments).exit_code == 0
        now = file.stat()
        assert (now.st_mode, now.st_uid, now.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_a_link_to_the_file_remains_a_link(file: Path) -> None:
    target = file.with_name("elsewhere.toml")
    file.symlink_to(target)
    keys(file, "create", "app")
    keys(file, "create", "other")

    assert file.is_symlink()
    assert [entry.name for entry in read_auth_file(target).keys] == ["app", "other"]


@pytest.mark.parametrize(
    "before", ["", "# ours\n", '[anonymous]\nscopes = ["read"]', '[anonymous]\nscopes = ["read"]\n\n']
)
def test_one_blank_line_separates_the_tables(file: Path, before: str) -> None:
    if before:
        file.write_text(before)
    for name in ("one", "two", "three"):
        keys(file, "create", name)
    keys(file, "revoke", "two")
    keys(file, "create", "four")
    lines = file.read_text().splitlines()
    tables = [number for number, line in enumerate(lines) if line == "[[keys]]"]
    assert len(tables) == 3
    assert all(lines[number - 1] == "" and lines[number - 2] != "" for number in tables)
    assert sum(line == "" for line in lines) == 3


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "app"), "already has a key named 'app'"),
        (("create", "a b"), "name"),
        (("create", "new", "--expires", "soon"), "neither a span such as 90d"),
        (("create", "new", "--scope", "all"), "'all' is not one of"),
        (("create", "new", "--rate", "fast"), "'fast' is not a number"),
        (("revoke", "ap"), "no key named 'ap'; it has app"),
        (("rotate", "ap"), "no key named 'ap'"),
    ],
)
def test_a_mistake_changes_nothing(file: Path, arguments: tuple[str, ...], told: str) -> None:
    keys(file, "create", "app")
    before = file.read_text()
    refused = keys(file, *arguments)
    assert refused.exit_code != 0
    assert told in refused.output + str(refused.exception)
    assert file.read_text() == before
    assert [entry.name for entry in file.parent.iterdir()] == ["auth.toml"]


#: Runs the commands in its arguments when a line arrives.
EDITOR = """
import sys, time
from backline.cli import keys
replacement = keys.replacement
def slow(path, **options):
    time.sleep(0.02)  # as on a slow disk
    return replacement(path, **options)
keys.replacement = slow
print("ready", flush=True)
sys.stdin.readline()
for line in sys.argv[1:]:
    keys.command.main(line.split(), standalone_mode=False)
"""


def test_commands_that_edit_the_file_at_the_same_time_lose_no_change(file: Path) -> None:
    numbers = range(4)
    for number in numbers:
        keys(file, "create", f"old{number}")
    keys(file, "create", "kept")
    lines = [[f"create {name}{number} --json" for number in numbers] for name in ("one", "two")]
    lines.append([f"revoke old{number}" for number in numbers])
    lines.append(["rotate kept --json"] * len(numbers))
    editors = [
        subprocess.Popen(
            [sys.executable, "-c", EDITOR, *(f"{line} --auth {file}" for line in own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for own in lines
    ]
    for editor in editors:
        assert editor.stdout is not None
        assert editor.stdout.readline() == "ready\n"
    for editor in editors:
        assert editor.stdin is not None
        editor.stdin.write("go\n")
        editor.stdin.flush()
    outputs = [editor.communicate()[0] for editor in editors]

    assert [editor.returncode for editor in editors] == [0] * 4
    shown = [json.loads(line) for output in outputs for line in output.splitlines() if line.startswith("{")]
    last = {entry["name"]: entry["key"] for entry in shown}  # the last rotation of "kept" counts
    assert len(last) == 2 * len(numbers) + 1
    found = {entry.name: entry.sha256 for entry in read_auth_file(file).keys}
    assert found == {name: hash_key(key) for name, key in last.items()}
    assert list(file.parent.iterdir()) == [file]


def test_a_key_can_be_created_after_the_last_one_was_revoked(file: Path) -> None:
    for _ in range(2):
        assert keys(file, "create", "app").exit_code == 0
        assert keys(file, "revoke", "app").exit_code == 0
        assert not read_auth_file(file).keys
    key = keys(file, "create", "app").stdout.strip()
    assert make_policy(read_auth_file(file), {}).keys.keys() == {hash_key(key)}


@pytest.mark.parametrize(
    "written", ["keys = []\n", 'keys = [{name = "old", sha256 = "%s", scopes = ["infer"]}]\n']
)
def test_a_key_is_added_to_an_inline_list(file: Path, written: str) -> None:
    file.write_text("# ours\n" + written.replace("%s", "0" * 64) + '\n[anonymous]\nscopes = ["read"]\n')
    known = [entry.name for entry in read_auth_file(file).keys]
    assert keys(file, "create", "app").exit_code == 0
    assert [entry.name for entry in read_auth_file(file).keys] == [*known, "app"]
    assert "# ours" in file.read_text()


@pytest.mark.parametrize("rate", ["inf", "nan", "0", "-1", "1e400", "1e-300"])
def test_a_rate_that_is_not_allowed_is_refused(file: Path, rate: str) -> None:
    made = keys(file, "create", "app", "--rate", rate)
    assert made.exit_code == 2
    assert "is not a number from 1e-06 to 1000000000000.0" in made.stderr
    assert not file.exists()
