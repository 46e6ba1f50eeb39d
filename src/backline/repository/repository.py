"""The seam to where models come from: a folder, an object store, an archive; scanned, watched, and fetched one version at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from backline.engine.model_config import ModelConfig
from backline.repository.listing import FileEntry

#: Called with the bytes that are here and the bytes that there are in all.
OnBytes = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version that a repository holds.

    `path` is the model file (or the folder, for formats that are one) below the repository's root, None where `problem` says why there is
    none. `files` are those that a load needs, by path below the root: the version's own and what the model's folder has beside its
    versions. `fingerprint` changes whenever one of them does.
    """

    version: str
    path: str | None
    files: dict[str, FileEntry] = field(default_factory=dict)
    fingerprint: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model that a repository holds.

    `versions` are all that it holds, oldest first; which of them are served is the version policy's decision (lifecycle). `folder` is the
    model's folder below the repository's root, "" when the root is the model. `namespace` is the repository's location. `problem` says why
    nothing of the model can be served; empty when something can. `warnings` are for the person who wrote the files.
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
    """A version on local disk: the model file or folder, and the model's folder with what is beside the versions (warmup/, labels)."""

    path: Path
    model_folder: Path


class Repository(Protocol):
    """A place that models come from. All methods are called on one event loop and do not block it."""

    @property
    def location(self) -> str:
        """The folder (absolute) or the URL, without secrets."""

    async def scan(self) -> list[FoundModel]:
        """What it holds now, by name. What is wrong with one model is noted in its `problem` and does not concern the others.

        Raises BacklineError when the repository does not exist or cannot be reached; the text says what to do.
        """

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Brings the files of a version to local disk, complete and verified. Raises BacklineError when it cannot."""

    def changes(self, interval: float) -> AsyncIterator[None]:
        """Yields whenever a scan may give something new: on events of the file system, else every `interval` seconds."""

    async def close(self) -> None:
        """Gives back what the repository holds (watches, connections, temporary files)."""
