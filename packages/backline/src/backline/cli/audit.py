"""`backline audit`: shows who changed or tried to change something on a server, and who was refused."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

import click
from msgspec.structs import asdict

from backline.cli.connection import connection_options
from backline.cli.numbers import WholeNumber
from backline.cli.options import json_option
from backline.cli.table import print_table
from backline_client.client.options import ClientOptions
from backline_client.client.sync import Client
from backline_client.values.control import Attempt, Change
from backline_client.values.names import printable

#: Seconds between checks for new entries.
_INTERVAL = 1.0
_MOST = 10_000
_EPILOG = """\b
Examples:
  backline audit
  backline audit --follow
  backline audit --state-dir /var/lib/backline --json | jq 'select(.outcome == "refused")'"""

_Read = Callable[[int, float], Sequence[Change | Attempt]]


@click.command("audit", epilog=_EPILOG)
@click.option(
    "--limit",
    type=WholeNumber(1, _MOST),
    default=20,
    show_default=True,
    help="How many of the latest entries to show.",
)
@click.option("--follow", is_flag=True, help="Keep running, and show new entries.")
@click.option(
    "--state-dir",
    "folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Read the audit log in this state folder instead of asking a server.",
)
@json_option("Print JSON lines.")
@connection_options
def command(
    url: str, options: ClientOptions, limit: int, follow: bool, folder: Path | None, as_json: bool
) -> None:
    """Show the audit log, oldest entry first: changes, attempts and refusals."""
    if folder is not None:
        _show(_reader(folder), limit, follow=follow, as_json=as_json)
    else:
        with Client(url, options) as client:
            _show(client.audit, limit, follow=follow, as_json=as_json)


def _reader(folder: Path) -> _Read:
    from backline.lifecycle.audit_log import AuditLog

    audit = AuditLog(folder)

    def read(limit: int, after: float) -> Sequence[Change | Attempt]:
        page = audit.entries(limit, after)
        entries = list(page.entries)
        while page.cursor and len(entries) < limit:
            page = audit.entries(limit - len(entries), after, page.cursor)
            entries += page.entries
        return entries

    return read


def _show(read: _Read, limit: int, *, follow: bool, as_json: bool) -> None:
    entries = read(limit, 0.0)[::-1]
    if as_json or follow:
        _print_lines(entries, as_json=as_json)
    elif entries:
        print_table(
            ("time", "outcome", "what", "model", "who", "address", "detail"),
            [_row(entry) for entry in entries],
        )
    else:
        print("the audit log is empty")
    after = entries[-1].time if entries else 0.0
    while follow:
        time.sleep(_INTERVAL)
        entries = read(_MOST, after)[::-1]
        _print_lines(entries, as_json=as_json)
        after = entries[-1].time if entries else after


def _print_lines(entries: Sequence[Change | Attempt], *, as_json: bool) -> None:
    for entry in entries:
        if as_json:
            stated = {name: value for name, value in asdict(entry).items() if value not in ("", 0)}
            print(json.dumps(stated), flush=True)
        else:
            print("  ".join(printable(part) for part in _row(entry)).rstrip(), flush=True)


def _row(entry: Change | Attempt) -> tuple[str, ...]:
    when = datetime.fromtimestamp(entry.time).astimezone().isoformat(" ", "seconds")
    if isinstance(entry, Change):
        label = f" label {entry.label}" if entry.label else ""
        version = f" {entry.version}" if entry.version else ""
        return (
            when,
            "done",
            f"{entry.action}{label}{version}",
            entry.model or "-",
            entry.who,
            "-",
            entry.detail,
        )
    more = f" (and {entry.suppressed - 1} more)" if entry.suppressed > 1 else ""
    return (
        when,
        entry.outcome,
        entry.route,
        entry.model or "-",
        entry.identity or "-",
        entry.address or "-",
        entry.detail + more,
    )
