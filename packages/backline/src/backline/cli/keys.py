"""`backline keys`: creates, lists, revokes and rotates keys in the file for `backline serve --auth`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import msgspec

from backline.access.auth_file import (
    LEAST_RATE,
    MOST_RATE,
    MOST_REQUESTS,
    AuthDocument,
    KeyEntry,
    ModelQuotaEntry,
    QuotaEntry,
    make_policy,
    read_auth_file,
)
from backline.access.keys import generate_key, hash_key
from backline.access.scope import EVERYBODY, Scope
from backline.cli.command import CommandGroup
from backline.cli.numbers import Number, WholeNumber
from backline.cli.options import json_option
from backline.cli.table import print_table
from backline_client.system.file_lock import edited
from backline_client.system.private_file import replacement
from backline_client.values.errors import AlreadyExists, NotFound, Unsupported

#: The scopes that a key can have.
_SCOPES = tuple(scope.value for scope in Scope if scope not in EVERYBODY)
_UNITS = {"m": 60, "h": 3600, "d": 86400}
_HEADER = "Keys for `backline serve --auth`. This file has only their hashes: a lost key must be replaced."


class _Moment(click.ParamType):
    """A point in time, given as a date or as a time span from now."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        span = re.fullmatch(r"(\d{1,6})([mhd])", value)
        if span is not None:
            seconds = int(span[1]) * _UNITS[span[2]]
            return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"'{value}' is neither a span such as 90d, 12h or 30m nor a date such as 2027-01-31")
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def file_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --auth; the command receives `file`."""
    return click.option(
        "--auth",
        "file",
        type=click.Path(path_type=Path, dir_okay=False),
        default=Path("auth.toml"),
        envvar="BACKLINE_AUTH",
        show_envvar=True,
        show_default=True,
        help="The file of keys; a running server that uses it notices changes within a second.",
    )(function)


class _KeyFile:
    """A file of keys that is being edited. Its comments and the order of its entries are preserved."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        """Reads the file. If the file does not exist, `create` starts a new file; without `create`, raises
        NotFound.

        Raises InvalidArgument if the file is not valid, and Unsupported if the package tomlkit is missing.
        """
        try:
            import tomlkit
        except ImportError:
            raise Unsupported("changing a file of keys needs tomlkit: pip install 'backline[auth]'") from None
        self.path = path
        if path.exists():
            self.content = read_auth_file(path)
            self._document = tomlkit.parse(path.read_text())
        elif create:
            self.content = AuthDocument()
            self._document = tomlkit.document()
            self._document.add(tomlkit.comment(_HEADER))
        else:
            raise NotFound(f"there is no file '{path}'; name it with --auth, or create a key")
        written = self._document.get("keys", ())
        if not isinstance(written, tomlkit.items.AoT):
            # No keys, `keys = []`, or inline tables, to which no [[keys]] table can be added.
            tables = tomlkit.aot()
            for entry in written:
                table = tomlkit.table()
                table.update(entry)
                tables.append(table)
            self._document.pop("keys", None)
            self._document.append("keys", tables)
        self._keys: Any = self._document["keys"]

    def names(self) -> list[str]:
        return [entry.name for entry in self.content.keys]

    def table(self, name: str) -> Any:
        """Returns the [[keys]] table of the key with this name. Raises NotFound if there is no such key."""
        for table in self._keys:
            if table["name"] == name:
                return table
        known = ", ".join(self.names()) or "none"
        raise NotFound(f"'{self.path}' has no key named '{name}'; it has {known}")

    def add(self, fields: dict[str, Any], quota: dict[str, Any]) -> None:
        import tomlkit

        table = tomlkit.table()
        table.update(fields)
        if quota:
            limits = tomlkit.table()
            limits.update(quota)
            table.add("quota", limits)
        if not self._document.as_string().endswith("\n\n"):
            table.trivia.indent = "\n"  # a blank line before the table
        self._keys.append(table)

    def remove(self, name: str) -> None:
        self._keys.remove(self.table(name))

    def save(self) -> None:
        """Replaces the file, or creates a file that only its owner can read.

        Raises InvalidArgument, and keeps the old file, if a value is invalid.
        """
        # A revoked key must not return after a power failure.
        if not self._keys:
            self._document.pop("keys")  # an empty list would be written as an array, which cannot be extended
        with replacement(self.path, durable=True) as new:
            new.write_text(self._document.as_string())
            make_policy(read_auth_file(new), {}, self.path.parent)


@contextmanager
def _editing(path: Path, *, create: bool = False) -> Iterator[_KeyFile]:
    """Provides a file of keys to edit in the `with` block, and then saves it, unless the block raises.

    Raises the same errors as `_KeyFile` and `save`. Another command that edits the file at the same time
    waits, so that neither loses the other's change.
    """
    _KeyFile(path, create=create)  # fails before a lock is created
    with edited(path):
        keys = _KeyFile(path, create=create)
        yield keys
        keys.save()


def _show_key(key: str, name: str, *, as_json: bool, **more: Any) -> None:
    if as_json:
        print(json.dumps({"name": name, "key": key, **more}))
        return
    print(key)
    click.secho(
        f"This is the only time that the key '{name}' is shown. Clients send it as"
        " 'Authorization: Bearer KEY'.",
        err=True,
        fg="yellow",
    )


def _warn_if_expired(name: str, expires: datetime | None) -> None:
    if expires is not None and expires <= datetime.now(UTC):
        click.secho(
            f"Warning: the key '{name}' has already expired, so servers refuse it", err=True, fg="yellow"
        )


_CREATE_EPILOG = """\b
Examples:
  backline keys create app --scope infer --scope read --auth auth.toml
  backline keys create app --scope infer --model 'speech-*' --expires 90d
  backline keys create deploy --scope manage --scope read
  backline keys create guest --rate 100 --burst 200 --max-in-flight 8
  backline serve models/ --host 0.0.0.0 --auth auth.toml"""


@click.command("create", epilog=_CREATE_EPILOG)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(_SCOPES),
    default=("infer", "read"),
    show_default=True,
    help="What the key allows; repeatable.",
)
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="PATTERN",
    default=("*",),
    help="Limit the key to models whose names match, such as 'speech-*'; repeatable.",
)
@click.option(
    "--expires", type=_Moment(), metavar="TIME", help="When the key expires: 90d, 12h, or 2027-01-31."
)
@click.option(
    "--rate",
    type=Number(LEAST_RATE, MOST_RATE),
    metavar="NUMBER",
    help="Maximum number of requests per second; default: no limit.",
)
@click.option(
    "--burst",
    type=WholeNumber(1, MOST_REQUESTS),
    metavar="NUMBER",
    help="Requests that may arrive at once after a pause; default: as many as --rate allows in one second.",
)
@click.option(
    "--max-in-flight",
    type=WholeNumber(1, MOST_REQUESTS),
    metavar="NUMBER",
    help="Maximum number of requests in flight.",
)
@click.option(
    "--bytes-per-second",
    type=Number(LEAST_RATE, MOST_RATE),
    metavar="NUMBER",
    help="Maximum number of bytes of request bodies per second.",
)
@json_option()
@file_option
def create_key(
    file: Path,
    name: str,
    scopes: Sequence[str],
    models: Sequence[str],
    expires: datetime | None,
    rate: float | None,
    burst: int | None,
    max_in_flight: int | None,
    bytes_per_second: float | None,
    as_json: bool,
) -> None:
    """Create a key and print it. It is never shown again. The file is created if it does not exist."""
    if burst is not None and rate is None:
        raise click.UsageError("--burst needs --rate")
    key = generate_key()
    fields: dict[str, Any] = {"name": name, "sha256": hash_key(key), "scopes": sorted(set(scopes))}
    if tuple(models) != ("*",):
        fields["models"] = list(models)
    if expires is not None:
        fields["expires"] = expires
    limits = {
        "requests_per_second": rate,
        "burst": burst,
        "max_in_flight": max_in_flight,
        "bytes_per_second": bytes_per_second,
    }
    with _editing(file, create=True) as keys:
        if name in keys.names():
            raise AlreadyExists(
                f"'{file}' already has a key named '{name}'; rotate it or choose another name"
            )
        keys.add(fields, {name: limit for name, limit in limits.items() if limit is not None})
    _show_key(key, name, as_json=as_json)
    _warn_if_expired(name, expires)


_LIST_EPILOG = """\b
Examples:
  backline keys list --auth auth.toml
  backline keys list --json | jq '.keys[].name'"""


@click.command("list", epilog=_LIST_EPILOG)
@json_option()
@file_option
def list_keys(file: Path, as_json: bool) -> None:
    """List the keys: names, scopes, models, expiry and quotas, but never the keys themselves."""
    entries = _KeyFile(file).content.keys
    now = datetime.now(UTC)
    if as_json:
        listed = [
            {
                "name": entry.name,
                "hash": entry.sha256[:8],
                "scopes": sorted(entry.scopes),
                "models": entry.models,
                "expires": None if entry.expires is None else entry.expires.isoformat(),
                "quotas": [
                    {name: value for name, value in msgspec.to_builtins(quota).items() if value is not None}
                    for quota in _quotas_of(entry)
                ],
            }
            for entry in entries
        ]
        print(json.dumps({"keys": listed}))
        return
    if not entries:
        print(f"No keys in '{file}'")
        return
    rows = []
    for entry in entries:
        expires = "never"
        if entry.expires is not None:
            moment = entry.expires if entry.expires.tzinfo else entry.expires.replace(tzinfo=UTC)
            expires = f"{moment:%Y-%m-%d %H:%M} UTC" if moment > now else "expired"
        rows.append(
            (
                entry.name,
                entry.sha256[:8],
                ", ".join(sorted(entry.scopes)),
                ", ".join(entry.models),
                expires,
                "; ".join(map(_shown_quota, _quotas_of(entry))) or "none",
            )
        )
    print_table(("name", "hash", "scopes", "models", "expires", "quota"), rows)


def _quotas_of(entry: KeyEntry) -> Sequence[QuotaEntry]:
    return [*(() if entry.quota is None else (entry.quota,)), *entry.quotas]


def _shown_quota(quota: QuotaEntry) -> str:
    parts = []
    if quota.requests_per_second is not None:
        burst = "" if quota.burst is None else f" (burst {quota.burst})"
        parts.append(f"{quota.requests_per_second:g}/s{burst}")
    if quota.max_in_flight is not None:
        parts.append(f"{quota.max_in_flight} in flight")
    if quota.bytes_per_second is not None:
        parts.append(f"{quota.bytes_per_second:g} B/s")
    models = f" to {', '.join(quota.models)}" if isinstance(quota, ModelQuotaEntry) else ""
    return ", ".join(parts) + models


@click.command("revoke", epilog="\b\nExample:\n  backline keys revoke app --auth auth.toml")
@click.argument("name")
@file_option
def revoke_key(file: Path, name: str) -> None:
    """Remove a key. Servers refuse it within a second, also on streams that are already open."""
    with _editing(file) as keys:
        keys.remove(name)
    print(f"Revoked '{name}'")


@click.command("rotate", epilog="\b\nExample:\n  backline keys rotate app --auth auth.toml")
@click.argument("name")
@click.option(
    "--expires", type=_Moment(), metavar="TIME", help="When the new key expires; default: unchanged."
)
@json_option()
@file_option
def rotate_key(file: Path, name: str, expires: datetime | None, as_json: bool) -> None:
    """Replace a key with a new one that has the same name and permissions, and print the new key."""
    key = generate_key()
    with _editing(file) as keys:
        table = keys.table(name)
        table["sha256"] = hash_key(key)
        if expires is not None:
            table["expires"] = expires
    _show_key(key, name, as_json=as_json)
    _warn_if_expired(name, expires)


_GENERATE_EPILOG = """\b
Example:
  BACKLINE_API_KEY=$(backline keys generate) backline serve models/"""


@click.command("generate", epilog=_GENERATE_EPILOG)
def generate() -> None:
    """Print a random key for BACKLINE_API_KEY or BACKLINE_ADMIN_KEY. No file is changed."""
    print(generate_key())


@click.group("keys", cls=CommandGroup)
def command() -> None:
    """Create, list, revoke and rotate the API keys of a server."""


for _command in (create_key, list_keys, revoke_key, rotate_key, generate):
    command.add_command(_command)
