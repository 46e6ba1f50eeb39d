"""`backline env prune`."""

from __future__ import annotations

import json
import time

import click

from backline.cli.env.store_option import document, store_option
from backline.engine.byte_size import format_bytes
from backline.environments.store import Environments, unused

_EPILOG = """\b
Examples:
  backline env prune
  backline env prune --unused-for 30
  backline env prune --all --dry-run"""


@click.command("prune", epilog=_EPILOG)
@click.option(
    "--unused-for",
    type=click.FloatRange(0),
    metavar="DAYS",
    help="Also those that no server has used for so many days.",
)
@click.option("--all", "everything", is_flag=True, help="All that no server uses at the moment.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@click.option("--json", "as_json", is_flag=True, help="Print what was removed as JSON.")
@store_option
def prune_environments(
    store: Environments, unused_for: float | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove environments that no model asks for any more, and what interrupted builds have left.

    What a running server uses stays. Whatever is removed is built again when a model needs it.
    """
    days = 0.0 if everything else unused_for
    chosen = unused(store.entries(), now=time.time(), seconds=None if days is None else days * 86400)
    removed = [entry for entry in chosen if dry_run or store.remove(entry.digest)]
    freed = sum(entry.about.bytes for entry in removed) + (0 if dry_run else store.remove_unfinished())
    if as_json:
        print(
            json.dumps(
                {"removed": [document(entry) for entry in removed], "bytes": freed, "dry_run": dry_run}
            )
        )
        return
    for entry in removed:
        about = entry.about
        verb = "would remove" if dry_run else "removed"
        print(f"{verb} {entry.digest[:12]} ({about.file or 'no packages'}, Python {about.python})")
    count = f"{len(removed)} environment{'' if len(removed) == 1 else 's'}"
    print(f"{count}, {format_bytes(freed)}{' would be' if dry_run else ''} freed")
