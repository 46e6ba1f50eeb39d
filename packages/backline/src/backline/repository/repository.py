"""Defines the interface of repositories, from which models are loaded: folders, object stores, hubs and
archives.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct, field

from backline.engine.config.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: A callback that receives the number of bytes that are present so far, and the total number of bytes.
OnBytes = Callable[[int, int], None]
#: The name of the folder with examples, in the model's folder.
EXAMPLES: Final = "examples"


class FoundVersion(Struct, frozen=True):
    """A version in a repository.

    `path` is the path of the model's file, or of its folder for some formats, below the root of the
    repository. If the version cannot be loaded, `path` is None, and `problem` says why. `files` are the files
    that a load needs, keyed by their paths below the root: the files of the version, and files next to the
    version folders. `fingerprint` changes whenever the version must be loaded again. `examples` are the names
    of the files in the folder EXAMPLES next to the version folders.
    """

    version: str
    path: str | None
    files: dict[str, FileEntry] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str = ""
    examples: tuple[str, ...] = ()


class FoundModel(Struct, frozen=True):
    """A model in a repository.

    `versions` has all versions, oldest first; the version policy decides later which of them are served.
    `folder` is the model's folder below the root of the repository, or "" if the root is the model.
    `namespace` is the location of the repository. `problem` says why the model as a whole cannot be served;
    FoundVersion.problem says this of a single version. If Triton would report the problem as a failure to
    create a version rather than a failure to read the model, `refused` is that version, with the problem in
    Triton's words. `warnings` are addressed to the author of the files.
    """

    name: str
    namespace: str
    folder: str
    config: ModelConfig
    versions: tuple[FoundVersion, ...] = ()
    problem: str = ""
    refused: FoundVersion | None = None
    warnings: tuple[str, ...] = ()


def _nothing_to_check() -> None:
    """The `check` for files that only the server writes, so they cannot have changed since the scan."""


class FetchedVersion(Struct, frozen=True):
    """A version on local disk: its model file or folder, and the model's folder (with warmup/ and labels).

    The paths of the version's files are relative to `root`. Call `check` on a thread before the files are
    read: it raises Unavailable if they have changed since the scan.
    """

    root: Path
    path: Path
    model_folder: Path
    check: Callable[[], None] = _nothing_to_check


class Repository(Protocol):
    """A source of models. All methods are called on one event loop, and do not block it."""

    @property
    def location(self) -> str:
        """The absolute path of the repository, or its URL without secrets."""

    @property
    def name(self) -> str:
        """The namespace of the repository's models: the name that the user gave, or a name derived from the
        location.
        """

    async def scan(self) -> list[FoundModel]:
        """Returns the models that the repository contains now, sorted by name.

        A fault in one model is recorded in the `problem` of that model, and does not affect other models.
        Raises BacklineError, with advice on what to do, if the repository does not exist or cannot be
        reached.
        """

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Makes all files of a version available on local disk.

        Raises BacklineError, with advice on what to do, if that fails.
        """

    def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields when a scan may find changes: after file system events, or every `interval` seconds where
        there are no such events.
        """

    async def close(self) -> None:
        """Stops downloads, and releases threads and connections."""
