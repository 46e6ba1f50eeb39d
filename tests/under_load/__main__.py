"""Changes a model under constant load, in a folder or an object store: `python -m under_load` (in tests/)."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from support import object_stores
from support.server import serve
from under_load.changes import Deployment
from under_load.run import run
from under_load.stores import BucketStore, FolderStore, Store

_SERVERS = {"s3": object_stores.s3, "gcs": object_stores.gcs, "azure": object_stores.azure}


@contextlib.contextmanager
def _store(kind: str, root: Path) -> Iterator[tuple[Store, Mapping[str, str]]]:
    """An empty store, and the environment in which a server can reach it."""
    if kind == "folder":
        yield FolderStore(root / "models"), {}
        return
    with _SERVERS[kind](root / "store.log") as bucket:
        bucket.make_bucket(bucket.bucket)
        yield BucketStore(bucket, "models"), bucket.environment


@click.command()
@click.option("--changes", default=200, show_default=True, help="Number of changes.")
@click.option(
    "--store",
    type=click.Choice(("folder", *_SERVERS)),
    default="folder",
    show_default=True,
    help="Kind of model repository.",
)
def main(changes: int, store: str) -> None:
    """Changes a model under 200 requests a second; fails if any request is affected."""
    with TemporaryDirectory() as folder, _store(store, Path(folder)) as (models, environment):
        root = Path(folder)
        deployment = Deployment(models)
        deployment.lay_out()
        options = (
            "--model-control-mode",
            "poll",
            "--repository-poll-secs",
            "0.2",
            "--state-dir",
            folder,
            "--cache-dir",
            str(root / "cache"),
        )
        with serve(models.location, root / "log", *options, environment=dict(environment)) as server:
            outcome = run(server, deployment, changes)
    print(f"{store}: {outcome}")
    for answer in outcome.errors[:5]:
        print(answer)
    for answer, allowed in outcome.wrong[:5]:
        print(answer, "expected one of", allowed)
    sys.exit(bool(outcome.errors or outcome.wrong or outcome.latency_during > 2 * outcome.latency_before))


main()
