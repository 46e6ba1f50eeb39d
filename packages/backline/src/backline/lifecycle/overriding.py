"""Handles load requests that contain a configuration or files to use instead of the repository's."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from backline.backends.registry import FORMATS
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.restated import InForce
from backline.lifecycle.wanted import Source
from backline.repository.fingerprint import fingerprint
from backline.repository.layouts.layouts import CONFIG_FILES
from backline.repository.layouts.model_settings import SETTINGS_FILE
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundVersion
from backline.repository.walk import walk
from backline_client.system.file_lock import open_lock, try_lock
from backline_client.values.control import Overrides
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import check_name
from backline_client.values.private_places import keep_private

#: The names of configuration files. Files with these names in a request are ignored: they must not replace
#: the request's `config`, which is the only configuration that is checked.
_CONFIGURATIONS = frozenset({*CONFIG_FILES, SETTINGS_FILE})
_PREFIX = "backline-loads-"


class OverridingFiles:
    """Private folders for the files of load requests.

    The files of a model are removed after the model's next load, when it is unloaded, and by `close`.
    """

    def __init__(self, *, complete: bool = False, may_name_servers: bool = False) -> None:
        """With `complete`, configurations must name all inputs and outputs. With `may_name_servers`,
        configurations may say where remote models run.
        """
        self._complete = complete
        self._may_name_servers = may_name_servers
        self._root: Path | None = None
        #: A descriptor of the root folder. The lock on it shows other servers that this process still runs.
        self._lock = -1
        self._folders: dict[str, Path] = {}

    async def source(self, name: str, overrides: Overrides, sender: str) -> Source:
        """Writes the files of a load request from `sender`, and returns the model in them. Raises
        InvalidArgument if the request has no configuration, or if its configuration or files are unusable.
        """
        if overrides.config is None:
            # Triton's text.
            raise InvalidArgument("Load parameter 'config' must be specified for model file override")
        check_name("model", name)
        place = await asyncio.to_thread(self._write, name, overrides.config, overrides)
        try:
            repository = LocalRepository(place / "models", formats=FORMATS)
            found = await repository.scan()
            return Source(name, found[0], repository, sender=sender)
        except BaseException:
            _remove(place)
            raise

    def loaded(self, source: Source) -> None:
        """Removes the files of the model's previous load. Called after a successful load."""
        place = self._place(source)
        if place is None or self._folders.get(source.name) != place:
            self.forget(source.name)
        if place is not None:
            self._folders[source.name] = place

    def failed(self, source: Source) -> None:
        """Removes the files of a failed load."""
        place = self._place(source)
        if place is not None and self._folders.get(source.name) != place:
            _remove(place)

    def _place(self, source: Source) -> Path | None:
        place = Path(source.repository.location).parent
        return place if self._root is not None and place.parent == self._root else None

    def _write(self, name: str, text: str, overrides: Overrides) -> Path:
        if self._root is None:
            self._root, self._lock = _new_root()
            keep_private(self._root, "load")
        # Imported late, because few load requests come with files.
        import tempfile

        from backline.repository.configuration.override import parse, read_override
        from backline.repository.configuration.text import render

        place = Path(tempfile.mkdtemp(dir=self._root))
        # The model's name and the paths of the files were checked, so no file can be written outside `place`.
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
            (folder / "config.pbtxt").write_text(render(parse(text)), "utf-8")
        except OSError as error:
            _remove(place)
            raise InvalidArgument(
                f"the files sent to load '{name}' cannot be written to '{place}': {error.strerror}; free some"
                " space there"
            ) from None
        except BaseException:
            _remove(place)
            raise
        return place

    def forget(self, name: str) -> None:
        """Removes the files of a model. Versions that were loaded from these files remain loaded."""
        folder = self._folders.pop(name, None)
        if folder is not None:
            _remove(folder)

    def close(self) -> None:
        if self._root is not None:
            _remove(self._root)
            os.close(self._lock)
            self._root = None


def _remove(folder: Path) -> None:
    import shutil  # imported late, because it imports compression libraries

    shutil.rmtree(folder, ignore_errors=True)


def remove_stale() -> None:
    """Removes the folders that this user's servers left when they were killed. The folders of running servers
    are locked, so they are kept.
    """
    if sys.platform == "win32":  # Windows cannot lock folders
        return
    import tempfile

    with suppress(OSError):
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                # No link is followed: all users share the folder for temporary files, so another user may
                # have created a link with such a name.
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                try:
                    if os.fstat(descriptor).st_uid == os.geteuid() and try_lock(descriptor):
                        _remove(folder)
                finally:
                    os.close(descriptor)


def _new_root() -> tuple[Path, int]:
    """Returns a new folder, and a descriptor that locks it."""
    import tempfile

    while True:
        root = Path(tempfile.mkdtemp(prefix=_PREFIX))
        descriptor = open_lock(root / "lock") if sys.platform == "win32" else os.open(root, os.O_RDONLY)
        if try_lock(descriptor) and root.is_dir():
            return root, descriptor
        os.close(descriptor)  # another server's `remove_stale` locked or removed the folder first


async def with_configuration(
    source: Source,
    text: str,
    *,
    complete: bool = False,
    may_name_servers: bool = False,
    served: InForce | None = None,
) -> Source:
    """Returns a repository's model with the configuration `text` of a load request instead of the
    repository's configuration.

    With `complete`, the configuration must name all inputs and outputs; with `may_name_servers`, the
    configuration may say where a remote model runs. What only restates what is in force in the `served` model
    causes no new load. Returns `source` if none of its versions can be loaded: a
    load of the source will say why. Raises InvalidArgument if the configuration is unusable.
    """
    found = source.found
    usable = [version for version in found.versions if not version.problem]
    if not usable:
        return source
    fetched = await source.repository.fetch(found, usable[-1], lambda done, total: None)

    def read() -> ModelConfig:
        from backline.repository.configuration.override import read_override

        fetched.check()
        return read_override(
            text,
            found.name,
            walk(fetched.model_folder),
            complete=complete,
            own=found.config.declared,
            may_name_servers=may_name_servers,
        )

    config = await asyncio.to_thread(read)
    if served is not None:
        config = served.without_restated(config)
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
                problem=f"it does not contain '{config.default_model_filename}',"
                " the default_model_filename of the load request",
            )
        version = replace(version, path=path)
    return replace(version, fingerprint=fingerprint(version.files, config))
