"""Reads a repository on local disk: a folder in any layout, a model's file, or a list of models for
TensorFlow Serving. Waits until files that another program may still be writing are complete.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from msgspec import Struct

from backline.engine.config.model_config import ModelConfig, ModelFormat
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
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable

#: The minimum time, in seconds, for which a file must have been unchanged to count as complete.
AT_REST = 1.0
#: A file counts as complete only once it has been unchanged for this many times the longest pause between two
#: of its changes so far.
_PAUSES = 3.0
#: The time, in seconds, without a change after which a file always counts as complete.
LONGEST_REST = 15.0


class Seen(Struct, frozen=True):
    """A file as it was when it was last checked: its path, its identity, and the number of seconds since it
    was written.
    """

    path: str
    identity: str
    age: float


@dataclass(slots=True)
class _Growth:
    identity: str
    changed_at: float
    #: The longest pause between two changes to a file, in seconds, while the file may still be incomplete.
    pause: float = 0.0

    def complete_at(self) -> float:
        return self.changed_at + min(max(AT_REST, self.pause * _PAUSES), LONGEST_REST)


class FilesAtRest:
    """Remembers how files grow, because a copy that pauses cannot be distinguished from a finished copy.

    The longer the pauses between a file's changes so far, the longer the file must be unchanged to count as
    complete. All times are in seconds, and from the same clock.
    """

    def __init__(self, *, edited: bool = False) -> None:
        """With `edited`, a user edits the files. Pauses between two changes then do not matter, because an
        editor writes a whole file each time.
        """
        self._edited = edited
        self._growing: dict[str, _Growth] = {}

    def wait(self, files: Iterable[Seen], now: float) -> float:
        """Returns the number of seconds until all files are complete, provided that no file changes; 0 if all
        files are complete now.
        """
        self._growing = {
            path: growth for path, growth in self._growing.items() if now - growth.changed_at <= LONGEST_REST
        }
        complete_at = now
        for file in files:
            # The age is negative if another machine, whose clock is ahead, wrote the file.
            changed_at = now - max(file.age, 0.0)
            growth = self._growing.get(file.path)
            if growth is None:
                growth = _Growth(file.identity, changed_at)
            elif growth.identity != file.identity:
                pause = 0.0 if self._edited else max(growth.pause, changed_at - growth.changed_at)
                growth = _Growth(file.identity, changed_at, pause)
            if now - growth.changed_at <= LONGEST_REST:
                self._growing[file.path] = growth
                complete_at = max(complete_at, growth.complete_at())
        return complete_at - now


#: The maximum size, in bytes, of a file that can be a list of models.
_MAX_LIST = 1024 * 1024
#: Seconds between two checks of files that have changed since the last scan. The checks end when the next
#: scan finds the change, or after a time limit.
_LOOK = 0.25


class LocalRepository:
    """A Repository at a local path, which is a folder or a file. If the repository is a single model, `name`
    overrides the model's name.
    """

    def __init__(
        self,
        path: Path,
        *,
        formats: Sequence[ModelFormat],
        configs: ConfigFiles | None = None,
        name: str = "",
        edited: bool = False,
    ) -> None:
        """`edited` says that a user edits the files of the repository; see FilesAtRest."""
        self._path = Path(os.path.abspath(path))
        self._formats = formats
        self._configs = configs or ConfigFiles()
        self._name = name
        self._stable_inodes = not is_remote(self._path)
        self._known: Known = {}
        #: The interval, in seconds, at which the repository is checked for changes; None if the repository is
        #: not watched.
        self._interval: float | None = None
        self._at_rest = FilesAtRest(edited=edited)
        #: The paths to watch, as determined by the last scan.
        self._watched: tuple[Path, ...] = (self._path,)
        #: The folder that paths of files are relative to, with all links resolved by the last scan.
        self._root = self._path

    @property
    def location(self) -> str:
        return str(self._path)

    @property
    def name(self) -> str:
        return self._name or self._path.name or "root"

    async def scan(self) -> list[FoundModel]:
        return await asyncio.to_thread(self.scan_now)

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """Returns the original files, not copies.

        If the repository is watched, waits until no file is being written any more, because a copy may be in
        progress. If a file changes during the wait, the next scan finds a new version, and the caller cancels
        this call.
        """
        if self._interval is not None:
            await self._until_at_rest(version, self._interval)
        total = sum(entry.size for entry in version.files.values())
        on_bytes(total, total)
        assert version.path is not None, "a version without a problem has a path"
        root = self._root
        return FetchedVersion(
            root, root / version.path, root / model.folder, partial(self._check, str(root), version)
        )

    def changes(self, interval: float) -> AsyncIterator[None]:
        self._interval = interval
        return changes(lambda: self._watched, interval)

    async def close(self) -> None:
        """Does nothing: the watch ends when the caller stops iterating over `changes`."""

    def scan_now(self) -> list[FoundModel]:
        """Does the same as `scan`, on the calling thread."""
        self._watched = (self._path,)
        is_file = self._path.is_file()
        self._root = (self._path.parent if is_file else self._path).resolve()
        if is_file:
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
                f"the name '{self._name}' can be given only to a single model, but '{self._path}' is a list"
                " that names its models; leave the name out"
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
        """Returns the model that an entry of the list names. Its paths are absolute, because its base path
        need not be below the folder of the list.
        """
        try:
            folder = folder_of(listed, self._path)
            if not folder.is_dir():
                raise NotFound(
                    f"{self._path}: base_path '{folder}' of model '{listed.name}' does not exist or is not a"
                    " folder; name the folder that holds the versions"
                )
            listing = walk(folder, stable_inodes=self._stable_inodes)
        except BacklineError as error:
            return FoundModel(listed.name, self.location, "", ModelConfig(listed.name), problem=error.message)
        return read_listed(Folder(listing, str(folder), self.location), listed, self._formats, self._configs)

    async def _until_at_rest(self, version: FoundVersion, interval: float) -> None:
        give_up = time.monotonic() + 2 * interval + LONGEST_REST  # _check reports changes that scans miss
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
            with contextlib.suppress(OSError):  # the file was removed; _check reports it
                status = (self._root / path).stat()
                found = identity(status, stable_inodes=self._stable_inodes)
                seen.append(Seen(path, found, now - status.st_mtime))
        return seen

    def _check(self, root: str, version: FoundVersion) -> None:
        """Raises Unavailable if a file of the version has changed since the scan."""
        for path, entry in version.files.items():
            place = os.path.join(root, path)
            try:
                now = identity(os.stat(place), stable_inodes=self._stable_inodes)
            except OSError:
                now = ""
            if now != entry.identity:
                raise Unavailable(
                    f"'{place}' changed while it was being loaded, or was removed; in mode poll, the server"
                    " loads it again once it is complete; in mode explicit, send another load request",
                    retry_after=1,
                )
