"""Handles load requests that contain a configuration or files to use instead of the repository's."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from backline.backends.registry import FORMATS
from backline.engine.config.model_config import ModelConfig
from backline.engine.control import Overrides
from backline.engine.errors import InvalidArgument
from backline.engine.names import check_name
from backline.engine.private_places import keep_private
from backline.lifecycle.wanted import Source
from backline.repository.configuration.override import parse, read_override
from backline.repository.fingerprint import fingerprint
from backline.repository.layouts.layouts import CONFIG_FILES
from backline.repository.layouts.model_settings import SETTINGS_FILE
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundVersion
from backline.repository.walk import walk
from backline.system.file_lock import open_lock, try_lock

#: Configuration files, which are ignored among a request's files: only the request's `config` was checked.
_CONFIGURATIONS = frozenset({*CONFIG_FILES, SETTINGS_FILE})
_PREFIX = "backline-loads-"


class OverridingFiles:
    """Private folders for the files of load requests.

    The files of a model are removed at its next load and by `close`.
    """

    def __init__(self, *, complete: bool = False, may_name_servers: bool = False) -> None:
        """With `complete`, configurations must name all inputs and outputs; with `may_name_servers`, they may
        say where remote models run.
        """
        self._complete = complete
        self._may_name_servers = may_name_servers
        self._root: Path | None = None
        #: A descriptor of the root folder, which stays locked as long as this process runs.
        self._lock = -1
        self._folders: dict[str, Path] = {}

    async def source(self, name: str, overrides: Overrides) -> Source:
        """Writes a load request's files and returns the model. Raises InvalidArgument for unusable files."""
        if overrides.config is None:
            # Triton's text.
            raise InvalidArgument("Load parameter 'config' must be specified for model file override")
        check_name("model", name)
        place = await asyncio.to_thread(self._write, name, overrides.config, overrides)
        try:
            repository = LocalRepository(place / "models", formats=FORMATS)
            found = await repository.scan()
            return Source(name, found[0], repository, own_files=False)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def loaded(self, source: Source) -> None:
        """Called after a successful load: removes the files that the model was loaded from before."""
        place = self._place(source)
        if place is None or self._folders.get(source.name) != place:
            self.forget(source.name)
        if place is not None:
            self._folders[source.name] = place

    def failed(self, source: Source) -> None:
        """Called after a failed load: removes the files of that load."""
        place = self._place(source)
        if place is not None and self._folders.get(source.name) != place:
            shutil.rmtree(place, ignore_errors=True)

    def _place(self, source: Source) -> Path | None:
        place = Path(source.repository.location).parent
        return place if self._root is not None and place.parent == self._root else None

    def _write(self, name: str, text: str, overrides: Overrides) -> Path:
        if self._root is None:
            self._root, self._lock = _new_root()
            keep_private(self._root, "load")
        place = Path(tempfile.mkdtemp(dir=self._root))
        # The name and the files' paths were checked: no file can be outside `place`.
        folder = place / "models" / name
        try:
            folder.mkdir(parents=True)
            for path, content in overrides.files.items():
                if path.rpartition("/")[2] in _CONFIGURATIONS:
                    continue
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            read_override(
                text,
                name,
                walk(folder),
                complete=self._complete,
                may_name_servers=self._may_name_servers,
            )
            from backline.repository.configuration.text import render

            (folder / "config.pbtxt").write_text(render(parse(text)), "utf-8")
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise InvalidArgument(
                f"the files of the load of '{name}' cannot be written to '{place}': {error.strerror}; free"
                " some space there"
            ) from None
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place

    def forget(self, name: str) -> None:
        """Removes the files of a model. Versions that were loaded from them stay loaded."""
        folder = self._folders.pop(name, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)
            os.close(self._lock)
            self._root = None


def remove_stale() -> None:
    """Removes the folders of this user's servers that were killed; running servers lock their folders."""
    if sys.platform == "win32":  # Windows cannot lock folders
        return
    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                # The folder for temporary files is shared: anyone may place a link of this name there.
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if os.fstat(descriptor).st_uid == os.geteuid() and try_lock(descriptor):
                        shutil.rmtree(folder, ignore_errors=True)
                finally:
                    os.close(descriptor)


def _new_root() -> tuple[Path, int]:
    """Returns a new folder, and its locked descriptor."""
    while True:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        descriptor = open_lock(root / "lock") if sys.platform == "win32" else os.open(root, os.O_RDONLY)
        if try_lock(descriptor) and root.is_dir():
            return root, descriptor
        os.close(descriptor)  # another server's `remove_stale` took the folder before it was locked


async def with_configuration(
    source: Source, text: str, *, complete: bool = False, may_name_servers: bool = False
) -> Source:
    """A repository's model with the configuration `text` of a load request in place of the repository's.

    With `complete`, the configuration must name all inputs and outputs; with `may_name_servers`, it may say
    where a remote model runs. Returns `source` if none of its versions can be loaded: a load of the source
    will say why. Raises InvalidArgument if the configuration is unusable.
    """
    found = source.found
    usable = [version for version in found.versions if not version.problem]
    if not usable:
        return source
    fetched = await source.repository.fetch(found, usable[-1], lambda done, total: None)
    config = await asyncio.to_thread(
        lambda: read_override(
            text,
            found.name,
            walk(fetched.model_folder),
            complete=complete,
            own=found.config.declared,
            may_name_servers=may_name_servers,
        )
    )
    versions = tuple(_under(version, found.folder, config) for version in found.versions)
    return replace(
        source, found=replace(found, config=config, versions=versions, problem="", warnings=config.warnings)
    )


def _under(version: FoundVersion, folder: str, config: ModelConfig) -> FoundVersion:
    """Returns a version with another configuration, which may name another model file."""
    if config.default_model_filename and not version.problem:
        path = "/".join(part for part in (folder, version.version, config.default_model_filename) if part)
        if path not in version.files and not any(name.startswith(path + "/") for name in version.files):
            return replace(
                version,
                problem=f"it does not hold '{config.default_model_filename}',"
                " the default_model_filename of the load",
            )
        version = replace(version, path=path)
    return replace(version, fingerprint=fingerprint(version.files, config))
