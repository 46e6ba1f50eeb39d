"""`backline env`: lists, builds and removes the environments of Python models."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from backline.backends.registry import choose
from backline.cli.command import CommandGroup
from backline.cli.model_folder import open_models
from backline.cli.numbers import Number
from backline.cli.options import cache_folder_option, json_option
from backline.cli.table import print_table
from backline.engine.numbers import format_bytes
from backline.environments.requirements import Requirements, find_requirements
from backline.environments.store import Environments, StoredEnvironment, User, default_folder, unused
from backline.environments.uv import Uv
from backline.repository.repository import FoundModel
from backline_client.values.errors import BacklineError


def store_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --cache-dir; the command receives `store`, an Environments."""

    @wraps(function)
    def with_store(cache_folder: Path | None, **others: Any) -> Any:
        return function(store=Environments(default_folder(cache_folder)), **others)

    return cache_folder_option(with_store)


def document(entry: StoredEnvironment) -> dict[str, Any]:
    """Returns the facts about an environment as a JSON object."""
    about = entry.about
    return {
        "environment": entry.digest,
        "file": about.file,
        "python": about.python,
        "packages": about.packages,
        "bytes": about.bytes,
        "built": about.built,
        "last_used": entry.last_used,
        "in_use": entry.in_use,
        "models": [{"model": user.model, "folder": user.model_folder} for user in entry.users],
    }


def ago(moment: float) -> str:
    """Returns how long ago `moment`, in seconds since 1970, was: for example "3 h ago"."""
    seconds = max(time.time() - moment, 0)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now"


_LISTING_EPILOG = """\b
Examples:
  backline env list
  backline env list --json | jq '.environments[] | select(.models == [])'"""


@click.command("list", epilog=_LISTING_EPILOG)
@json_option("Print JSON, with all packages.")
@store_option
def list_environments(store: Environments, as_json: bool) -> None:
    """List all environments: source, size, last use, and the models that use them."""
    entries = store.entries()
    if as_json:
        print(
            json.dumps({"folder": str(store.folder), "environments": [document(entry) for entry in entries]})
        )
        return
    if not entries:
        print(f"No environments in '{store.folder}'")
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


_BUILD_EPILOG = """\b
Examples:
  backline env build models/
  backline env build models/tagger --rebuild
  backline env build models/ --cache-dir /var/cache/backline

Run this when you build a container image: the first start is then as fast as later ones."""


@click.command("build", epilog=_BUILD_EPILOG)
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH..."
)
@click.option(
    "--rebuild",
    is_flag=True,
    help="Rebuild existing environments, which upgrades packages that are not pinned.",
)
@json_option()
@store_option
def build_environments(store: Environments, paths: tuple[Path, ...], rebuild: bool, as_json: bool) -> int:
    """Build the environments that models need. PATH is a repository, a model's folder, or a model's file.

    Exits with status 1 if an environment cannot be built.
    """
    results = []
    for path in paths:
        for model in open_models(path):
            for user, requirements in _needed(path.absolute(), model):
                result = _build(store, user, requirements, again=rebuild)
                results.append(result)
                if not as_json:
                    _show(result)
    if as_json:
        print(json.dumps({"environments": results}))
    elif not results:
        print("No model needs an environment")
    return 1 if any("error" in result for result in results) else 0


def _needed(path: Path, model: FoundModel) -> Iterator[tuple[User, Requirements]]:
    if model.config.ensemble is not None:  # an ensemble has no backend
        return
    root = path if path.is_dir() else path.parent
    seen: set[str] = set()
    for version in model.versions:
        file = None if version.path is None else root / version.path
        entry = None if file is None else choose(model.config, file)
        if file is None or entry is None or not entry.hosted:
            continue
        on_top = getattr(entry.backend(), "on_top", False)
        folder = file if file.is_dir() else file.parent
        user = User(model.name, str(folder), str(root / model.folder), model.config.python, on_top)
        requirements = find_requirements(folder, root / model.folder, model.config.python, on_top=on_top)
        if requirements is not None and requirements.digest not in seen:
            seen.add(requirements.digest)
            yield user, requirements


def _build(store: Environments, user: User, requirements: Requirements, *, again: bool) -> dict[str, Any]:
    result: dict[str, Any] = {
        "model": user.model,
        "environment": requirements.digest,
        "from": requirements.source,
    }
    began = perf_counter()
    try:
        there = not again and store.find(requirements, user) is not None
        if not there:
            print(f"{user.model}: building from {requirements.source}", file=sys.stderr, flush=True)
            store.build(
                requirements, Uv(), user, on_bytes=_bytes_shown(user.model), stop=lambda: False, again=again
            )
            store.find(requirements, user)  # records the model as a user of the environment
    except BacklineError as error:
        return {**result, "error": error.message}
    return {**result, "built": not there, "seconds": round(perf_counter() - began, 3)}


def _bytes_shown(model: str) -> Any:
    def show(done: int, total: int) -> None:
        print(
            f"{model}: {format_bytes(done)} of {format_bytes(total)} downloaded", file=sys.stderr, flush=True
        )

    return show


def _show(result: dict[str, Any]) -> None:
    if "error" in result:
        print(f"{result['model']}: FAILED: {result['error']}")
    elif result["built"]:
        print(
            f"{result['model']}: built {result['environment'][:12]} from {result['from']}"
            f" in {result['seconds']:.1f} s"
        )
    else:
        print(f"{result['model']}: {result['environment'][:12]} already exists")


_PRUNE_EPILOG = """\b
Examples:
  backline env prune
  backline env prune --unused-for 30
  backline env prune --all --dry-run"""


@click.command("prune", epilog=_PRUNE_EPILOG)
@click.option(
    "--unused-for",
    type=Number(0),
    metavar="DAYS",
    help="Also remove environments unused for this many days.",
)
@click.option("--all", "everything", is_flag=True, help="Remove all environments that no server is using.")
@click.option("--dry-run", is_flag=True, help="Only show what would be removed.")
@json_option("Print what was removed as JSON.")
@store_option
def prune_environments(
    store: Environments, unused_for: float | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove environments that no model needs any more, and leftovers of interrupted builds.

    Environments used by a running server are kept. A removed environment is rebuilt when a model needs it.
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


_EPILOG = """\b
Examples:
  backline env list
  backline env build models/
  backline env prune --unused-for 30

A model requests an environment with a requirements.txt, pyproject.toml, uv.lock or .python-version next to
its model.py, or with python = "3.13" in its model.toml. Models with the same requirements share an
environment."""


@click.group(cls=CommandGroup, epilog=_EPILOG)
def command() -> None:
    """Show, build and remove the environments of Python models."""


for subcommand in (list_environments, build_environments, prune_environments):
    command.add_command(subcommand)
