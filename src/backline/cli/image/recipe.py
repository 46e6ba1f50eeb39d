"""Determines what an image must contain to serve the models of a repository."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from backline.backends.registry import BACKENDS, BackendEntry, choose
from backline.engine.errors import InvalidArgument
from backline.environments.requirements import find_requirements
from backline.repository.repository import FoundModel

#: The extras for repositories in object stores, by scheme.
_OF_SCHEMES = {"s3": "cloud", "gs": "cloud", "az": "cloud", "as": "cloud"}
#: The files that may say what a Python model requires, or that identify a repository. Files of weights do not
#: have such names.
_SUFFIXES = (".py", ".txt", ".toml", ".pbtxt")
_NAMES = ("uv.lock", ".python-version", "PYTHON_VERSION")
#: The maximum size in bytes of a file that is copied into the image.
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """The contents of an image: sorted `extras`, and `files` that describe the models' environments.

    The files are small; their paths are relative to the repository's root.
    """

    extras: tuple[str, ...]
    files: tuple[str, ...]


def recipe_of(location: str, models: Iterable[FoundModel], root: Path | None) -> Recipe:
    """Returns the recipe for the models at `location`. `root` is its folder; None if it is remote.

    For a remote repository, the recipe lacks the models' environments, because the files are not available.
    Raises InvalidArgument for a model whose format is unknown.
    """
    extras = {extra for scheme, extra in _OF_SCHEMES.items() if location.startswith(f"{scheme}://")}
    files: set[str] = set()
    for model in models:
        if model.problem:
            raise InvalidArgument(f"model '{model.name}' cannot be served: {model.problem}")
        if model.config.ensemble is not None:
            continue
        for version in model.versions:
            if version.path is None:
                continue
            path = (root or Path()) / version.path
            entry = choose(model.config, path)
            extras |= _extras(entry, path)
            if root is not None and entry.hosted and _needs_environment(model, path, root):
                files |= {
                    name
                    for name, file in version.files.items()
                    if file.size <= _MAX_SIZE and _describes(name)
                }
    return Recipe(tuple(sorted(extras)), tuple(sorted(files)))


def _extras(entry: BackendEntry, path: Path) -> set[str]:
    return {entry.extra, _flavour(path) if entry.name == "mlflow" and path.exists() else ""} - {""}


def _flavour(path: Path) -> str:
    from backline.backends.mlflow import flavour_backend  # imported here, because few repositories need it

    backend = flavour_backend(path)
    return next(entry.extra for entry in BACKENDS if entry.name == backend)


def _needs_environment(model: FoundModel, path: Path, root: Path) -> bool:
    folder = path if path.is_dir() else path.parent
    return find_requirements(folder, root / model.folder, model.config.python) is not None


def _describes(name: str) -> bool:
    return name.endswith(_SUFFIXES) or name.rpartition("/")[2] in _NAMES
