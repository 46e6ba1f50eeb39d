"""`backline models label`, `promote` and `rollback` move labels; `history` shows past changes."""

from __future__ import annotations

import json
from datetime import datetime

import click
from msgspec.structs import asdict

from backline.cli.connection import connection_options
from backline.cli.models.entries import explain
from backline.cli.models.load import wait_option
from backline.cli.models.progress import run_change
from backline.cli.numbers import WholeNumber
from backline.cli.options import json_option
from backline.cli.table import print_table
from backline_client.client.aio import AsyncClient
from backline_client.client.options import ClientOptions
from backline_client.client.sync import Client
from backline_client.values.control import STABLE, Change
from backline_client.values.errors import BacklineError, NotFound
from backline_client.values.names import printable

_LABEL_EPILOG = """\b
Examples:
  backline models label basic_pitch                     show the labels
  backline models label basic_pitch canary 4            point canary to version 4
  backline models label basic_pitch canary 5 --expect 4 only if it points to version 4
  backline models label basic_pitch canary --remove"""

expect_option = click.option(
    "--expect",
    metavar="VERSION",
    help="Do nothing unless the label points to this version; '' means it must not exist.",
)

_PROMOTE_EPILOG = """\b
Examples:
  backline models promote basic_pitch 4
  backline models promote basic_pitch 4 --expect 3"""

_ROLLBACK_EPILOG = """\b
Examples:
  backline models rollback basic_pitch
  backline models rollback basic_pitch --label canary"""


@click.command("label", epilog=_LABEL_EPILOG)
@click.argument("name")
@click.argument("label", required=False)
@click.argument("version", required=False)
@click.option("--remove", is_flag=True, help="Remove the label.")
@expect_option
@wait_option
@json_option()
@connection_options
def label_model(
    url: str,
    options: ClientOptions,
    name: str,
    label: str | None,
    version: str | None,
    remove: bool,
    expect: str | None,
    wait: float,
    as_json: bool,
) -> None:
    """Show the labels of a model, or point LABEL to VERSION, which is loaded first if necessary."""
    if label is None:
        if remove:
            raise click.UsageError("--remove needs a LABEL")
        _show_labels(url, options, name, as_json)
        return
    if remove == (version is not None):
        raise click.UsageError("Give either a VERSION for the label, or --remove")

    async def move(client: AsyncClient) -> Change:
        if version is None:
            return await client.remove_label(name, label, expected=expect)
        return await client.set_label(name, label, version, expected=expect, timeout=wait)

    change, _ = run_change(url, options, move, model=name, version=version or label, quiet=as_json)
    _print_change(change, as_json)


@click.command("promote", epilog=_PROMOTE_EPILOG)
@click.argument("name")
@click.argument("version")
@expect_option
@wait_option
@json_option()
@connection_options
def promote_version(
    url: str, options: ClientOptions, name: str, version: str, expect: str | None, wait: float, as_json: bool
) -> None:
    """Point the label "stable" to VERSION, which then serves requests without a version."""

    async def promote(client: AsyncClient) -> Change:
        return await client.promote(name, version, expected=expect, timeout=wait)

    change, _ = run_change(url, options, promote, model=name, version=version, quiet=as_json)
    _print_change(change, as_json)


@click.command("rollback", epilog=_ROLLBACK_EPILOG)
@click.argument("name")
@click.option("--label", default=STABLE, show_default=True, help="The label to move back.")
@wait_option
@json_option()
@connection_options
def roll_back(url: str, options: ClientOptions, name: str, label: str, wait: float, as_json: bool) -> None:
    """Move a label back to the version before its last move. Repeat the command to go back further.

    The server keeps that version loaded for a while (backline serve --keep-previous-secs), so that a rollback
    takes effect immediately. After that time, a rollback loads the version first.
    """

    async def rollback(client: AsyncClient) -> Change:
        return await client.rollback(name, label, timeout=wait)

    change, _ = run_change(url, options, rollback, model=name, version=label, quiet=as_json)
    _print_change(change, as_json)


def move_text(change: Change) -> str:
    """Formats the versions before and after a move, such as "3 -> 4"; "(none)" means no version."""
    return f"{change.before or '(none)'} -> {change.version or '(none)'}"


def _print_change(change: Change, as_json: bool) -> None:
    print(
        json.dumps(asdict(change))
        if as_json
        else printable(f"{change.label or STABLE} of {change.model}: {move_text(change)}")
    )


def _show_labels(url: str, options: ClientOptions, name: str, as_json: bool) -> None:
    with Client(url, options) as client:
        try:
            labels = client.labels(name)
        except BacklineError as error:
            raise explain(error, client.models(), name) from None
    if as_json:
        print(json.dumps(labels))
    elif not labels:
        print(f"{name} has no labels. Set one: backline models label {name} LABEL VERSION")
    else:
        print_table(("label", "version"), sorted(labels.items()))


_EPILOG = """\b
Examples:
  backline models history
  backline models history basic_pitch --limit 10
  backline models history --json"""


@click.command("history", epilog=_EPILOG)
@click.argument("name", required=False, default="")
@click.option(
    "--limit",
    type=WholeNumber(1, 10_000),
    default=20,
    show_default=True,
    help="The number of changes to show, latest first.",
)
@json_option()
@connection_options
def show_history(url: str, options: ClientOptions, name: str, limit: int, as_json: bool) -> None:
    """Show who changed what, and when."""
    with Client(url, options) as client:
        changes = client.history(name, limit)
        if name and not changes:
            index = client.models()
            if all(entry.name != name for entry in index):
                raise explain(
                    NotFound(f"there is no model '{name}', and no change to it was recorded"), index, name
                )
    if as_json:
        print(json.dumps([asdict(change) for change in changes]))
    elif not changes:
        print(f"no changes{f' to {name}' if name else ''} yet")
    else:
        print_table(
            ("time", "action", "model", "version", "label", "who", "detail"),
            [_row(change) for change in changes],
        )


def _row(change: Change) -> tuple[str, ...]:
    when = datetime.fromtimestamp(change.time).astimezone().isoformat(" ", "seconds")
    version = move_text(change) if change.label else change.version
    return (
        when,
        change.action,
        change.model,
        version or "-",
        change.label or "-",
        change.who or "-",
        change.detail,
    )
