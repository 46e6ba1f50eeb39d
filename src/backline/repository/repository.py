"""The seam to the places that models come from: folders, object stores, hubs and archives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backline.engine.config.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: Called with the bytes present so far and the bytes in all.
OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version in a repository.

    `path` is the model file (or folder, for formats that are one) below the repository's root; None if
    it is missing, for the reason in `problem`. `files` are those that a load needs, by path below the root:
    the version's own, and those in the model's folder next to its versions. `fingerprint` changes whenever
    one of them does.
    """

    version: str
    path: str | None
    files: dict[str, FileEntry] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model in a repository.

    `versions` has all its versions, oldest first; the version policy (lifecycle) decides which are served.
    `folder` is the model's folder below the repository's root, "" if the root is the model. `namespace` is
    the repository's location. `problem` says why no version can be served; empty when one can. `warnings` are
    for the files' author.
    """

    name: str
    namespace: str
    folder: str
    config: ModelConfig
    versions: tuple[FoundVersion, ...] = ()
    problem: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class FetchedVersion:
    """A version on local disk: its model file or folder, and the model's folder (with warmup/, labels)."""

    path: Path
    model_folder: Path


class Repository(Protocol):
    """A place that models come from. All methods are called on one event loop and do not block it."""

    @property
    def location(self) -> str:
        """The absolute path, or the URL without secrets."""

    async def scan(self) -> list[FoundModel]:
        """The models it holds now, by name.

        A fault in one model is noted in its `problem` and does not affect the others.

        Raises BacklineError, saying what to do, when the repository does not exist or cannot be reached.
        """

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Brings a version's files to local disk, complete and verified. Raises BacklineError on failure."""

    def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields when a scan may find something new: on file system events, else every `interval` seconds."""

    async def close(self) -> None:
        """Releases what the repository holds (watches, connections, temporary files)."""
