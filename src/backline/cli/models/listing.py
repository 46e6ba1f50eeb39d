"""`backline models list`."""

from __future__ import annotations

import json

import click

from backline.cli.connection import connection_options
from backline.cli.models.entries import document, labels_text, memory_text, reason_text
from backline.cli.table import print_table
from backline.client.options import ClientOptions
from backline.client.sync import Client
from backline.engine.errors import BacklineError


@click.command(
    "list",
    epilog="\b\nExamples:\n  backline models list\n  backline models list --json --url http://server:8000",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@connection_options
def list_models(url: str, options: ClientOptions, as_json: bool) -> None:
    """List all models and versions: states, labels, memory, and how far loads are."""
    with Client(url, options) as client:
        index = client.models()
        try:
            counts = {(entry["name"], str(entry["version"])): entry for entry in client.statistics()}
        except BacklineError:  # an extension that not every server has
            counts = {}
    if as_json:
        print(json.dumps([document(entry) for entry in index]))
        return
    if not index:
        print(f"{url} has no models")
        return
    rows = []
    for entry in index:
        counters = counts.get((entry.name, entry.version), {})
        number = str(int(counters.get("inference_count", 0))) if counters else "-"
        state = entry.state or "not loaded"
        rows.append(
            (
                entry.name,
                entry.version or "-",
                state,
                labels_text(entry, index),
                memory_text(entry),
                number,
                reason_text(entry),
            )
        )
    print_table(
        ("model", "version", "state", "labels", "memory", "inferences", "reason"),
        rows,
        right=("memory", "inferences"),
    )
