"""`python -m under_load` (in tests/): changes to a model in a folder under a constant load, 200 unless told otherwise."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click
from support.server import serve
from under_load.changes import Deployment
from under_load.run import run
from under_load.stores import FolderStore


@click.command()
@click.option("--changes", default=200, show_default=True, help="How many, in a row.")
def main(changes: int) -> None:
    """Changes a model in a folder while 200 requests a second are answered; fails if any request notices."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        deployment = Deployment(FolderStore(root / "models"))
        deployment.lay_out()
        options = ("--model-control-mode", "poll", "--repository-poll-secs", "0.2", "--state-dir", folder)
        with serve(root / "models", root / "log", *options) as server:
            outcome = run(server, deployment, changes)
    print(outcome)
    for answer in outcome.errors[:5]:
        print(answer)
    for answer, allowed in outcome.wrong[:5]:
        print(answer, "expected one of", allowed)
    sys.exit(bool(outcome.errors or outcome.wrong or outcome.latency_during > 2 * outcome.latency_before))


main()
