"""Defines the interface of repositories, the places that models come from: folders, object stores, hubs and
archives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from backline.engine.config.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: A callback that receives the number of bytes that are present so far, and the total number.
OnBytes = Callable[[int, int], None]
#: The name of the folder with examples, in the model's folder.
EXAMPLES: Final = "examples"


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version in a repository.

    `path` is the model's file, or its folder for some formats, below the root of the repository. If the
    version cannot be loaded, `path` is None, and `problem` says why. `files` are the files that a load needs,
    by their paths below the root: those of the version, and those in the model's folder next to the versions.
    `fingerprint` changes whenever the version must be loaded again. `examples` are the names of the files in
    the folder EXAMPLES next to the versions.
    """

    version: str
    path: str | None
    files: dict[str, FileEntry] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in a repository.

    `versions` has all versions, oldest first; the version policy decides later which of them are served.
    `folder` is the model's folder below the root of the repository, or "" if the root is the model.
    `namespace` is the location of the repository. `problem` says why no version can be served; it is empty if
    one can. `refused` is set if Triton would report the problem for a version that it cannot create, rather
    than for a model that it cannot read; it is that version, with the problem in Triton's words. `warnings`
    are for the author of the files.
    """

    name: str
    namespace: str
    folder: str
    config: ModelConfig
    versions: tuple[FoundVersion, ...] = ()
    problem: str = ""
    refused: FoundVersion | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchedVersion:
    """A version on local disk: its model file or folder, and the model's folder (with warmup/ and labels)."""

    path: Path
    model_folder: Path


class Repository(Protocol):
    """A place that models come from. All methods are called on one event loop, and do not block it."""

    @property
    def location(self) -> str:
        """The absolute path, or the URL without secrets."""

    @property
    def name(self) -> str:
        """The namespace of the repository's models: a given name, or else one derived from the location."""

    async def scan(self) -> list[FoundModel]:
        """Returns the models that the repository contains now, sorted by name.

        A fault in one model is recorded in its `problem`, and does not affect other models. Raises
        BacklineError, with advice on what to do, if the repository does not exist or cannot be reached.
        """

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Makes the files of a version available on local disk, complete and verified. Raises
        BacklineError.
        """

    def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields when a scan may find changes: on file system events, or else every `interval` seconds."""

    async def close(self) -> None:
        """Releases watches, connections and temporary files."""
