"""Loads that bring a configuration or files to replace the repository's."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path, PurePosixPath

from backline.backends.registry import FORMATS
from backline.engine.control import Overrides
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.lifecycle.wanted.target import Source
from backline.repository.configuration.override import parse, read_override
from backline.repository.configuration.text import render
from backline.repository.fingerprint import fingerprint
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundVersion
from backline.repository.walk import walk


class OverridingFiles:
    """Private folders for files that came with loads; each lives until its model's next load, or `close`."""

    def __init__(self, *, complete: bool = False) -> None:
        """With `complete`, configurations must name inputs and outputs."""
        self._complete = complete
        self._root: Path | None = None
        self._folders: dict[str, Path] = {}

    async def source(self, name: str, overrides: Overrides) -> Source:
        """The model made of a load's files. Raises InvalidArgument for unusable files or configuration."""
        if overrides.config is None:
            raise InvalidArgument(
                "Load parameter 'config' must be specified for model file override"
            )  # Triton's text
        place = await asyncio.to_thread(self._write, name, overrides.config, overrides)
        repository = LocalRepository(place / "models", formats=FORMATS)
        found = await repository.scan()
        return Source(name, found[0], repository, own_files=False)

    def loaded(self, source: Source) -> None:
        """After a successful load: removes the files that the model was loaded from before."""
        place = self._place(source)
        if place is None or self._folders.get(source.name) != place:
            self.forget(source.name)
        if place is not None:
            self._folders[source.name] = place

    def failed(self, source: Source) -> None:
        """After a failed load: removes its files."""
        place = self._place(source)
        if place is not None and self._folders.get(source.name) != place:
            shutil.rmtree(place, ignore_errors=True)

    def _place(self, source: Source) -> Path | None:
        place = Path(source.repository.location).parent
        return place if self._root is not None and place.parent == self._root else None

    def _write(self, name: str, text: str, overrides: Overrides) -> Path:
        if self._root is None:
            self._root = Path(tempfile.mkdtemp(prefix="backline-"))
        place = Path(tempfile.mkdtemp(dir=self._root))
        folder = place / "models" / name
        try:
            folder.mkdir(parents=True)
            for path, content in overrides.files.items():
                target = folder / _inside(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            for file in ("config.pbtxt", "model.toml"):
                (folder / file).unlink(missing_ok=True)
            read_override(text, name, walk(folder), complete=self._complete)
            (folder / "config.pbtxt").write_text(render(parse(text)), "utf-8")
        except OSError as error:
            shutil.rmtree(place, ignore_errors=True)
            raise InvalidArgument(
                f"the files of the load of '{name}' cannot be written below '{place}': {error.strerror}"
            ) from None
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return place

    def forget(self, name: str) -> None:
        """Removes the files of a model. What was loaded from them stays loaded."""
        folder = self._folders.pop(name, None)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        if self._root is not None:
            shutil.rmtree(self._root, ignore_errors=True)


async def with_configuration(source: Source, text: str, *, complete: bool = False) -> Source:
    """A repository's model under a load's configuration, which with `complete` must name inputs and outputs.

    Raises InvalidArgument for an unusable configuration.
    """
    found = source.found
    usable = [version for version in found.versions if not version.problem]
    if not usable:
        raise InvalidArgument(
            f"load failed for model '{source.name}': {found.problem or found.versions[-1].problem}"
        )
    fetched = await source.repository.fetch(found, usable[-1], lambda done, total: None)
    config = await asyncio.to_thread(
        lambda: read_override(text, found.name, walk(fetched.model_folder), complete=complete)
    )
    versions = tuple(_under(version, found.folder, config) for version in found.versions)
    return replace(
        source, found=replace(found, config=config, versions=versions, problem="", warnings=config.warnings)
    )


def _under(version: FoundVersion, folder: str, config: ModelConfig) -> FoundVersion:
    """A version under another configuration, which may name another file."""
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


def _inside(path: str) -> PurePosixPath:
    """A path below the model's folder. Raises InvalidArgument for one that leads out of it."""
    relative = PurePosixPath(path)
    if (
        not path
        or "\0" in path
        or "\\" in path
        or relative.is_absolute()
        or ".." in relative.parts
        or relative == PurePosixPath(".")
    ):
        raise InvalidArgument(
            f"load parameter 'file:{path}' is not a path below the model's folder,"
            " such as 'file:1/model.onnx'"
        )
    return relative
