"""`backline env build`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import click

from backline.backends.registry import choose
from backline.cli.env.store_option import store_option
from backline.cli.model_folder import open_models
from backline.engine.byte_size import format_bytes
from backline.engine.errors import BacklineError
from backline.environments.requirements import Requirements, find_requirements
from backline.environments.store import Environments, User
from backline.environments.uv import Uv
from backline.repository.repository import FoundModel

_EPILOG = """\b
Examples:
  backline env build models/
  backline env build models/tagger --rebuild
  backline env build models/ --cache-dir /var/cache/backline

In an image of a container, this makes the first start as quick as all others."""


@click.command("build", epilog=_EPILOG)
@click.argument(
    "paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path), metavar="PATH..."
)
@click.option(
    "--rebuild", is_flag=True, help="Build those anew that are there: what is not pinned becomes the newest."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@store_option
def build_environments(store: Environments, paths: tuple[Path, ...], rebuild: bool, as_json: bool) -> int:
    """Build the environments that models ask for. PATH is a repository, the folder of a model, or a model's file.

    Ends with status 1 when one cannot be built.
    """
    results = []
    for path in paths:
        for model in open_models(path):
            for user, requirements in _asked_for(path.absolute(), model):
                result = _build(store, user, requirements, again=rebuild)
                results.append(result)
                if not as_json:
                    _show(result)
    if as_json:
        print(json.dumps({"environments": results}))
    elif not results:
        print("No model asks for an environment of its own")
    return 1 if any("error" in result for result in results) else 0


def _asked_for(path: Path, model: FoundModel) -> Iterator[tuple[User, Requirements]]:
    root = path if path.is_dir() else path.parent
    asked: set[str] = set()
    for version in model.versions:
        file = None if version.path is None else root / version.path
        if file is None or not choose(model.config, file).hosted:
            continue
        folder = file if file.is_dir() else file.parent
        user = User(model.name, str(folder), str(root / model.folder), model.config.python)
        requirements = find_requirements(folder, root / model.folder, model.config.python)
        if requirements is not None and requirements.digest not in asked:
            asked.add(requirements.digest)
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
            store.find(requirements, user)  # which notes who asked for it
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
            f"{result['model']}: built {result['environment'][:12]} from {result['from']} in {result['seconds']:.1f} s"
        )
    else:
        print(f"{result['model']}: {result['environment'][:12]} is there")
