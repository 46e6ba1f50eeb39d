"""`backline models history`."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime

import click

from backline.cli.connection import connection_options
from backline.cli.models.entries import explain
from backline.cli.models.labels import move_text
from backline.cli.models.load import json_option
from backline.cli.table import print_table
from backline.client.options import ClientOptions
from backline.client.sync import Client
from backline.engine.control import Change
from backline.engine.errors import NotFound

_EPILOG = """\b
Examples:
  backline models history
  backline models history basic_pitch --limit 10
  backline models history --json"""


@click.command(
    "history",
    epilog=_EPILOG,
)
@click.argument("name", required=False, default="")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="How many changes, the latest first.",
)
@json_option
@connection_options
def show_history(url: str, options: ClientOptions, name: str, limit: int, as_json: bool) -> None:
    """Show who changed what, and when."""
    with Client(url, options) as client:
        changes = client.history(name, limit)
        if name and not changes:
            index = client.models()
            if all(entry.name != name for entry in index):
                raise explain(NotFound(f"nothing is known of a model '{name}'"), index, name)
    if as_json:
        print(json.dumps([asdict(change) for change in changes]))
    elif not changes:
        print(f"nothing was changed{f' on {name}' if name else ''} yet")
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
