"""Reads a repository on local disk: a folder in any layout, a model's file, or a list of models for
TensorFlow Serving.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from backline.engine.config.model_config import ModelConfig, ModelFormat
from backline.engine.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from backline.repository.at_rest import LONGEST_REST, FilesAtRest, Seen
from backline.repository.configuration import ConfigFiles
from backline.repository.file_events import changes, is_remote
from backline.repository.layouts.layouts import Known, read_single
from backline.repository.layouts.model_config_list import (
    ListedModel,
    folder_of,
    is_list,
    parse_list,
    read_listed,
)
from backline.repository.layouts.model_files import suffix_of
from backline.repository.layouts.scan import check_named, scan_listing
from backline.repository.listing import Folder
from backline.repository.repository import FetchedVersion, FoundModel, FoundVersion, OnBytes
from backline.repository.walk import identity, reason, walk, walk_file

#: A file larger than this, in bytes, is not a list of models.
_MAX_LIST = 1024 * 1024
#: Seconds between checks of files that have changed since the last scan, until the next scan finds the
#: change.
_LOOK = 0.25


class LocalRepository:
    """A Repository at a local path: a folder or a file. If it is a single model, `name` overrides the model's
    name.
    """

    def __init__(
        self,
        path: Path,
        *,
        formats: Sequence[ModelFormat],
        configs: ConfigFiles | None = None,
        name: str = "",
    ) -> None:
        self._path = Path(os.path.abspath(path))
        self._formats = tuple(formats)
        self._configs = configs or ConfigFiles()
        self._name = name
        self._stable_inodes = not is_remote(self._path)
        self._known: Known = {}
        #: The interval at which changes are looked for, in seconds; None if the repository is not watched.
        self._interval: float | None = None
        self._at_rest = FilesAtRest()
        #: The paths to watch, as determined by the last scan.
        self._watched: tuple[Path, ...] = (self._path,)

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        return self._name or self._path.name or "root"

    async def scan(self) -> list[FoundModel]:
        return await asyncio.to_thread(self.scan_now)

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Returns the original files, not copies. Raises Unavailable if they have changed since the scan.

        If the repository is watched, waits until no file is being written any more, because a copy may be in
        progress. If a file changes meanwhile, the next scan finds a new version, and the caller cancels.
        """
        if self._interval is not None:
            await self._until_at_rest(version, self._interval)
        fetched = await asyncio.to_thread(self._check, model, version)
        total = sum(entry.size for entry in version.files.values())
        on_bytes(total, total)
        return fetched

    def changes(self, interval: float) -> AsyncIterator[None]:
        self._interval = interval
        return changes(lambda: self._watched, interval)

    async def close(self) -> None:
        """Does nothing: the watch ends when the caller stops iterating over `changes`."""

    def scan_now(self) -> list[FoundModel]:
        """Does the same as `scan`, on the calling thread."""
        self._watched = (self._path,)
        if self._path.is_file():
            return self._scan_file()
        listing = walk(self._path, stable_inodes=self._stable_inodes)
        found = scan_listing(
            listing, formats=self._formats, name=self._name, configs=self._configs, known=self._known
        )
        check_named(found, self._name, str(self._path))
        return found

    def _scan_file(self) -> list[FoundModel]:
        suffixes = tuple(suffix for form in self._formats for suffix in form.suffixes)
        names = {name for form in self._formats for name in form.filenames}
        if suffix_of(self._path.name) in suffixes or self._path.name in names:
            return [self._scan_single()]
        text = self._read_list()
        if not is_list(text):
            raise InvalidArgument(
                f"model repository '{self._path}' is a file, not a folder that holds"
                " <model>/<version>/<file>; it is neither a model file"
                f" ({', '.join(f'*{suffix}' for suffix in suffixes)}) nor a model_config_list of"
                " TensorFlow Serving"
            )
        if self._name:
            raise InvalidArgument(
                f"the name '{self._name}' is for the only model at a location, but the list '{self._path}'"
                " names its models"
            )
        listed = parse_list(text, str(self._path))
        models = [self._read_listed(model) for model in listed]
        self._watched = (
            self._path,
            *(Path(model.folder) for model in models if model.folder and Path(model.folder).is_dir()),
        )
        return sorted(models, key=lambda model: model.name)

    def _scan_single(self) -> FoundModel:
        name = self._name or self._path.stem
        config = ModelConfig(name, default_model_filename=self._path.name)
        place = Folder(walk_file(self._path, stable_inodes=self._stable_inodes), "", self.location)
        self._watched = tuple(self._path.parent / file for file in place.listing.files)
        return read_single(place, name, self._formats, self._configs, config)

    def _read_list(self) -> str:
        try:
            with self._path.open("rb") as file:
                return file.read(_MAX_LIST).decode("utf-8-sig")
        except OSError as error:
            raise InvalidArgument(f"'{self._path}' cannot be read: {reason(error)}") from None
        except UnicodeDecodeError:
            return ""

    def _read_listed(self, listed: ListedModel) -> FoundModel:
        """Returns a model in the list. The paths of the model are absolute, because its base path may be
        anywhere.
        """
        try:
            folder = folder_of(listed, self._path)
            if not folder.is_dir():
                raise NotFound(
                    f"{self._path}: base_path '{folder}' of model '{listed.name}' does not exist or is not a"
                    " folder"
                )
            listing = walk(folder, stable_inodes=self._stable_inodes)
        except BacklineError as error:
            return FoundModel(listed.name, self.location, "", ModelConfig(listed.name), problem=error.message)
        return read_listed(Folder(listing, str(folder), self.location), listed, self._formats, self._configs)

    def _root(self) -> Path:
        return self._path.parent if self._path.is_file() else self._path

    async def _until_at_rest(self, version: FoundVersion, interval: float) -> None:
        give_up = time.monotonic() + 2 * interval + LONGEST_REST  # _check reports a change that no scan finds
        while time.monotonic() < give_up:
            seen = await asyncio.to_thread(self._look_at, version)
            pause = self._at_rest.wait(seen, time.monotonic())
            if not pause and all(file.identity == version.files[file.path].identity for file in seen):
                return
            await asyncio.sleep(pause or _LOOK)

    def _look_at(self, version: FoundVersion) -> list[Seen]:
        now = time.time()
        seen = []
        for path in version.files:
            with contextlib.suppress(OSError):  # the file is gone; _check reports it
                status = (self._root() / path).stat()
                found = identity(status, stable_inodes=self._stable_inodes)
                seen.append(Seen(path, found, now - status.st_mtime))
        return seen

    def _check(self, model: FoundModel, version: FoundVersion) -> FetchedVersion:
        root = self._root()
        for path, entry in version.files.items():
            try:
                now = identity((root / path).stat(), stable_inodes=self._stable_inodes)
            except OSError:
                now = ""
            if now != entry.identity:
                raise Unavailable(
                    f"'{root / path}' changed while it was being loaded; it will be loaded again once it is"
                    " complete",
                    retry_after=1,
                )
        assert version.path is not None, "a version without a problem has a path"
        root = root.resolve()
        return FetchedVersion(root / version.path, root / model.folder)
