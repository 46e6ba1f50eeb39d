"""`backline keys`: the file that it writes, and what it prints."""

from __future__ import annotations

import json
import stat
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
