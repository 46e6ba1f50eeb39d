"""The models of a model repository, and those of a model's folder alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from backline.engine.engine import version_order
from backline.engine.errors import BacklineError, InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.engine.model_format import ModelFormat
from backline.repository.fingerprint import fingerprint
from backline.repository.listing import FileEntry, Listing
from backline.repository.model_files import find_by_suffix, find_model, holds_model, no_model_reason
from backline.repository.names import check_name
from backline.repository.repository import FoundModel, FoundVersion

CONFIG_FILES = ("config.pbtxt", "model.toml")
#: The version of a model whose files do not give one.
FIRST_VERSION = "1"
#: Folders beside the versions that hold something else (Triton's names), and those of them that a load needs.
_OTHER_FOLDERS = frozenset({"configs", "warmup", "initial_state"})
_NEEDED_FOLDERS = ("warmup/", "initial_state/")
#: Names of folders that can hardly be anything but versions: numbers, dotted numbers, dates.
_PLAINLY_VERSION = re.compile(r"v?[0-9]+([._-][0-9]+)*")


@dataclass(frozen=True, slots=True)
class Place:
    """A folder to be read: its listing, and where it is below the root of the repository `namespace` ("" for the root itself)."""

    listing: Listing
    path: str
    namespace: str

    def folders(self) -> dict[str, Place]:
        """The folders directly in it, by name."""
        files: dict[str, dict[str, FileEntry]] = {}
        folders: dict[str, set[str]] = {folder: set() for folder in self.listing.folders if "/" not in folder}
        for path, entry in self.listing.files.items():
            top, slash, rest = path.partition("/")
            if slash:
                files.setdefault(top, {})[rest] = entry
        for path in self.listing.folders:
            top, slash, rest = path.partition("/")
            if slash:
                folders.setdefault(top, set()).add(rest)
        return {name: self._below(name, files.get(name, {}), folders.get(name, set())) for name in sorted(files.keys() | folders.keys())}

    def _below(self, name: str, files: Mapping[str, FileEntry], folders: set[str]) -> Place:
        read = self.listing.read
        listing = Listing(f"{self.listing.location.rstrip('/')}/{name}", files, frozenset(folders), lambda path: read(f"{name}/{path}"))
        return Place(listing, self.join(name), self.namespace)

    def problem(self, name: str) -> str:
        """Why what is called `name` directly in it cannot be used; empty when it can."""
        entry = self.listing.files.get(name)
        return entry.problem if entry is not None else ""

    def join(self, path: str) -> str:
        """A path below this folder as one below the root."""
        return "/".join(part for part in (self.path, path) if part)


def read_model(place: Place, name: str, formats: Sequence[ModelFormat], config_name: str = "", problem: str = "") -> FoundModel:
    """The model whose folder is `place`: `<version>/<file>`, with a configuration beside the versions if wanted (Triton's layout).

    `problem` is what is known to be wrong with the folder itself.
    """
    model = FoundModel(name, place.namespace, place.path, ModelConfig(name))
    try:
        check_name("model", name, place.listing.location)
        if problem:
            raise InvalidArgument(problem)
        config = read_config(place.listing, name, config_name)
        model = replace(model, config=config, warnings=config.warnings)
        versions, warnings = _read_versions(place, config, formats)
        if not versions:
            raise InvalidArgument(_no_version_reason(place.listing, config, formats))
        held = {version.version for version in versions}
        warnings += [
            f"version_policy of '{name}' names version {version}, which '{place.listing.location}' does not hold"
            for version in config.version_policy.specific or ()
            if version not in held
        ]
        return replace(model, versions=tuple(versions), warnings=model.warnings + tuple(warnings))
    except BacklineError as error:
        return replace(model, problem=error.message)


def read_config(listing: Listing, name: str, config_name: str = "") -> ModelConfig:
    """The configuration in a model's folder, what the server decides where there is none. Raises InvalidArgument."""
    from backline.repository import config_pbtxt  # the text format's parser is only loaded when there is a text

    entry = listing.files.get(CONFIG_FILES[0])
    if entry is None:
        return ModelConfig(name)
    if entry.problem:
        raise InvalidArgument(entry.problem)
    return config_pbtxt.read(Path(listing.location) / CONFIG_FILES[0], name)


def read_version(
    place: Place, version: str, needed: Mapping[str, FileEntry], config: ModelConfig, formats: Sequence[ModelFormat]
) -> FoundVersion:
    """The version whose folder is `place`; `needed` are the files beside it that a load needs, by path below the root."""
    listing = place.listing
    try:
        path = find_model(listing, formats, config.default_model_filename)
        if path is None:
            raise InvalidArgument(no_model_reason(listing, formats, config.default_model_filename))
        for entry in listing.files.values():
            if entry.problem:
                raise InvalidArgument(entry.problem)
    except BacklineError as error:
        return FoundVersion(version, None, problem=error.message)
    files = {**{place.join(file): entry for file, entry in listing.files.items()}, **needed}
    return FoundVersion(version, place.join(path), files, fingerprint(files, config))


def is_model_folder(place: Place, formats: Sequence[ModelFormat]) -> bool:
    """Whether a folder is plainly that of a model: it holds a configuration, or versions and is none itself."""
    if any(name in place.listing.files for name in CONFIG_FILES):
        return True
    return not holds_model(place.listing, formats) and any(
        holds_model(version.listing, formats) for name, version in place.folders().items() if name not in _OTHER_FOLDERS
    )


def is_version_folder(name: str, place: Place, formats: Sequence[ModelFormat]) -> bool:
    """Whether a folder is plainly that of a version: it is called like one, and holds a model."""
    return _PLAINLY_VERSION.fullmatch(name) is not None and holds_model(place.listing, formats)


def _read_versions(place: Place, config: ModelConfig, formats: Sequence[ModelFormat]) -> tuple[list[FoundVersion], list[str]]:
    found: list[FoundVersion] = []
    warnings: list[str] = []
    needed, unusable = _needed_beside_versions(place)
    warnings += unusable
    for name, version in place.folders().items():
        if name.startswith(".") or name in _OTHER_FOLDERS:
            continue
        numeric = name.isascii() and name.isdigit()
        if numeric and len(name) > 1 and name[0] == "0":
            warnings.append(f"'{version.listing.location}' is ignored: the number of a version has no leading zero")
            continue
        try:
            check_name("version", name, version.listing.location)
            if problem := place.problem(name):
                raise InvalidArgument(problem)
        except BacklineError as error:
            found.append(FoundVersion(name, None, problem=error.message))
            continue
        wanted = config.default_model_filename
        if numeric or (
            wanted in version.listing.files or wanted in version.listing.folders if wanted else holds_model(version.listing, formats)
        ):
            found.append(read_version(version, name, needed, config, formats))
    return sorted(found, key=lambda version: version_order(version.version)), warnings


def _needed_beside_versions(place: Place) -> tuple[dict[str, FileEntry], list[str]]:
    """The files beside the versions that a load may need, and warnings about those of them that cannot be used.

    The configuration is not one of them: what of it a load needs is compared by its meaning (fingerprint).
    """
    needed: dict[str, FileEntry] = {}
    warnings: list[str] = []
    for path, entry in place.listing.files.items():
        if path in CONFIG_FILES or path in place.listing.folders or not ("/" not in path or path.startswith(_NEEDED_FOLDERS)):
            continue
        if entry.problem:
            warnings.append(entry.problem)
        else:
            needed[place.join(path)] = entry
    return needed, warnings


def _no_version_reason(listing: Listing, config: ModelConfig, formats: Sequence[ModelFormat]) -> str:
    loose = find_by_suffix(listing, formats)
    first = f"{listing.location}/{FIRST_VERSION}"
    if loose:
        return f"'{listing.location}' has no version; move '{loose[0]}' into a version's folder: '{first}/{loose[0]}'"
    expected = config.default_model_filename or formats[0].filenames[0]
    return f"'{listing.location}' has no version; expected a model file such as '{first}/{expected}'"
