"""`backline env list`."""

from __future__ import annotations

import json

import click

from backline.cli.env.store_option import ago, document, store_option
from backline.cli.table import print_table
from backline.engine.byte_size import format_bytes
from backline.environments.store import Environments, StoredEnvironment

_EPILOG = """\b
Examples:
  backline env list
  backline env list --json | jq '.environments[] | select(.models == [])'"""


@click.command("list", epilog=_EPILOG)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with all packages.")
@store_option
def list_environments(store: Environments, as_json: bool) -> None:
    """Show all environments: what they were built from, their size, when they were last used, and by which models."""
    entries = store.entries()
    if as_json:
        print(
            json.dumps({"folder": str(store.folder), "environments": [document(entry) for entry in entries]})
        )
        return
    if not entries:
        print(f"There are no environments in '{store.folder}'")
        return
    columns = ("environment", "python", "from", "packages", "size", "last used", "models")
    print_table(columns, [_row(entry) for entry in entries], right=("packages", "size"))
    total = format_bytes(sum(entry.about.bytes for entry in entries))
    print(f"\n{len(entries)} environment{'s' if len(entries) > 1 else ''}, {total}, in '{store.folder}'")


def _row(entry: StoredEnvironment) -> tuple[str, ...]:
    about = entry.about
    models = ", ".join(sorted({user.model for user in entry.users})) or "-"
    used = "in use" if entry.in_use else ago(entry.last_used)
    return (
        entry.digest[:12],
        about.python,
        about.file or "-",
        str(len(about.packages)),
        format_bytes(about.bytes),
        used,
        models,
    )
