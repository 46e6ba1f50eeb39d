"""Reads models in the layouts of repositories, with one function or module for each layout.

| layout                    | files                                                   | rule                 |
| ------------------------- | ------------------------------------------------------- | -------------------- |
| model repository (Triton) | `<model>/<version>/<file>`, `<model>/config.pbtxt`      | `read_repository`    |
| model folder, base path   | `<version>/<file>` (TensorFlow Serving), configuration  | `read_model`         |
| one model                 | `<file>` (KServe's /mnt/models)                         | `read_single`        |
| MLServer                  | `<anything>/model-settings.json`                        | model_settings.py    |
| TensorFlow Serving's list | a file with a `model_config_list`                       | model_config_list.py |

scan.py recognises the layout of a listing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from backline.engine.config.model_config import UNAVAILABLE_VERSIONS, ModelConfig, ModelFormat
from backline.repository import configuration
from backline.repository.configuration import ConfigFiles
from backline.repository.configuration.document import CreationFault
from backline.repository.fingerprint import fingerprint
from backline.repository.layouts.model_files import (
    candidates,
    find_by_suffix,
    find_model,
    named_models,
    no_model_reason,
    suffix_of,
    usual_file,
    with_backend_of_name,
)
from backline.repository.listing import FileEntry, Folder, Listing, check_name, some_of
from backline.repository.repository import EXAMPLES, FoundModel, FoundVersion
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.names import printable, version_order

#: The names of configuration files. A folder that contains such a file is the folder of a model.
CONFIG_FILES = ("config.pbtxt", "model.toml")
#: The version number of a model without version folders.
FIRST_VERSION = "1"
#: Folders next to the version folders that are not versions themselves; Triton knows all of them except
#: EXAMPLES. A load needs the files in the folders of _NEEDED_FOLDERS.
_OTHER_FOLDERS = frozenset({"configs", "warmup", "initial_state", EXAMPLES})
_NEEDED_FOLDERS = ("warmup/", "initial_state/")
#: The maximum number of examples of a model, and the maximum size of an example in bytes. Larger examples,
#: and further examples beyond the maximum number, are left out.
_MAX_EXAMPLES = 50
_MAX_EXAMPLE = 16 << 20
#: Matches folder names that are almost certainly versions: numbers, dotted numbers, dates.
_PLAINLY_VERSION = re.compile(r"v?[0-9]+([._-][0-9]+)*")


#: Maps each folder of a repository to the files from which the model was read, the problem of the folder, and
#: the model.
Known = dict[str, tuple[Listing, str, FoundModel]]


def read_repository(
    root: Folder,
    folders: Mapping[str, Folder],
    formats: Sequence[ModelFormat],
    configs: ConfigFiles,
    known: Known | None = None,
) -> list[FoundModel]:
    """Returns the models of a repository, one for each of `folders`.

    A model in `known` whose files have not changed is not read again, unless it or one of its versions had a
    problem, because the problem may have been temporary, or `formats` may be more than before. Updates
    `known`.
    """
    before = known or {}
    now: Known = {}
    for name, place in folders.items():
        problem = root.problem(name)
        listing, known_problem, model = before.get(name, (None, "", None))
        if (
            model is None
            or listing is None
            or model.problem
            or any(version.problem for version in model.versions)
            or problem != known_problem
            or not _same(listing, place.listing)
        ):
            model = read_model(place, name, formats, configs, problem)
        now[name] = (place.listing, problem, model)
    if known is not None:
        known.clear()
        known.update(now)
    return [model for _, _, model in now.values()]


def _same(listing: Listing, other: Listing) -> bool:
    """Returns whether two listings of one place contain the same files with the same identities."""
    return listing.files == other.files and listing.folders == other.folders


def read_model(
    place: Folder,
    name: str,
    formats: Sequence[ModelFormat],
    configs: ConfigFiles,
    problem: str = "",
    given: ModelConfig | None = None,
) -> FoundModel:
    """Returns the model in the folder `place`, which has a folder for each version and may contain a
    configuration.

    `problem` is a known problem of the folder itself. If a configuration is `given`, it replaces the
    configuration in the folder.
    """
    model = FoundModel(printable(name), place.namespace, place.path, ModelConfig(printable(name)))
    try:
        check_name("model", name, place.location)
        if problem:
            raise InvalidArgument(problem)
        config = _given_or_read(given, place.listing, name, configs)
        model = replace(model, config=config, warnings=config.warnings)
        versions, warnings = _read_versions(place, config, formats)
        if not versions and config.ensemble is not None:  # object stores and git cannot store empty folders
            whole = FoundVersion(FIRST_VERSION, place.path, {}, fingerprint({}, config))
            versions = [_with_examples(whole, place, _examples(place))]
        if not versions:
            raise InvalidArgument(_no_version_reason(place.listing, config, formats))
        held = {version.version for version in versions}
        missing = [version for version in config.version_policy.specific or () if version not in held]
        if missing:
            warnings.append(
                f"version_policy of '{name}' names version {some_of(missing)}, which '{place.location}' does"
                " not hold"
            )
        return replace(model, versions=tuple(versions), warnings=model.warnings + tuple(warnings))
    except CreationFault as fault:
        names = [one for one in place.folders() if is_version_name(one)]
        if fault.versions is not None:
            names = [one for one in names if one in fault.versions]
        if not names:
            return replace(model, problem=f"{UNAVAILABLE_VERSIONS} '{name}'; also, {fault.message}")
        refused = FoundVersion(max(names, key=version_order), None, problem=fault.reason)
        return replace(model, problem=fault.message, refused=refused)
    except BacklineError as error:
        return replace(model, problem=error.message)


def read_single(
    place: Folder,
    name: str,
    formats: Sequence[ModelFormat],
    configs: ConfigFiles,
    given: ModelConfig | None = None,
    version: str = FIRST_VERSION,
) -> FoundModel:
    """Returns the model whose only version is the folder `place` itself, which may also contain a
    configuration.
    """
    model = FoundModel(printable(name), place.namespace, place.path, ModelConfig(printable(name)))
    try:
        check_name("model", name, place.location)
        check_name("version", version, place.location)
        config = _given_or_read(given, place.listing, name, configs)
        found = read_version(place, version, {}, config, formats)
        return replace(model, config=config, versions=(found,), warnings=config.warnings)
    except CreationFault as fault:
        refused = FoundVersion(version, None, problem=fault.reason)
        return replace(model, problem=fault.message, refused=refused)
    except BacklineError as error:
        return replace(model, problem=error.message)


def read_config(listing: Listing, name: str, configs: ConfigFiles) -> ModelConfig:
    """Returns the configuration in a model's folder, or an empty configuration if the folder has none. Raises
    InvalidArgument if the configuration cannot be read.
    """
    config = configuration.read(
        listing,
        name,
        config_name=configs.name,
        complete=configs.complete,
        platforms=configs.platforms,
    ) or ModelConfig(name)
    return with_backend_of_name(config, listing)


def _given_or_read(
    given: ModelConfig | None, listing: Listing, name: str, configs: ConfigFiles
) -> ModelConfig:
    if given is not None and configs.complete and not given.declared:
        raise configuration.missing(listing)
    return given or read_config(listing, name, configs)


def read_version(
    place: Folder,
    version: str,
    needed: Mapping[str, FileEntry],
    config: ModelConfig,
    formats: Sequence[ModelFormat],
) -> FoundVersion:
    """Returns the version in the folder `place`. A load also needs the files `needed`, which are keyed by
    their paths below the root.
    """
    listing = place.listing
    try:
        path = find_model(listing, formats, config)
        if path is None:
            raise InvalidArgument(no_model_reason(listing, formats, config))
        for entry in listing.files.values():
            if entry.problem:
                raise InvalidArgument(entry.problem)
    except BacklineError as error:
        return FoundVersion(version, None, problem=error.message)
    files = {place.join(file): entry for file, entry in listing.files.items() if not _is_config(file)}
    files.update(needed)
    return FoundVersion(version, place.join(path), files, fingerprint(files, config))


def is_model_folder(place: Folder, formats: Sequence[ModelFormat]) -> bool:
    """Returns whether a folder is clearly the folder of a model: it contains a configuration, or it contains
    versions and no model file.
    """
    if has_config(place):
        return True
    return not candidates(place.listing, formats) and any(
        is_version_folder(name, version, formats) or named_models(version.listing, formats)
        for name, version in place.folders().items()
        if name not in _OTHER_FOLDERS
    )


def is_version_folder(name: str, place: Folder, formats: Sequence[ModelFormat]) -> bool:
    """Returns whether a folder is clearly a version: it is named like a version, and contains a model."""
    return is_version_name(name) and bool(candidates(place.listing, formats))


def is_version_name(name: str) -> bool:
    """Returns whether a name is almost certainly the name of a version."""
    return _PLAINLY_VERSION.fullmatch(name) is not None


def has_config(place: Folder) -> bool:
    return any(name in place.listing.files for name in CONFIG_FILES)


def _read_versions(
    place: Folder, config: ModelConfig, formats: Sequence[ModelFormat]
) -> tuple[list[FoundVersion], list[str]]:
    found: list[FoundVersion] = []
    needed, warnings = _needed_next_to_versions(place)
    examples = _examples(place)
    folders = {name: folder for name, folder in place.folders().items() if name not in _OTHER_FOLDERS}
    suffixes = _suffixes_of_versions(folders, formats)
    for name, version in folders.items():
        numeric = name.isascii() and name.isdigit()
        if numeric and len(name) > 1 and name[0] == "0":
            warnings.append(
                f"'{version.location}' is ignored, because version numbers cannot have leading zeros; rename"
                f" it to '{int(name)}'"
            )
            continue
        try:
            check_name("version", name, version.location)
            if problem := place.problem(name):
                raise InvalidArgument(problem)
        except BacklineError as error:
            found.append(FoundVersion(printable(name), None, problem=error.message))
            continue
        if numeric or _is_version(name, version.listing, config, formats, suffixes):
            found.append(
                _with_examples(read_version(version, name, needed, config, formats), place, examples)
            )
    return sorted(found, key=lambda version: version_order(version.version)), warnings


def _is_version(
    name: str, listing: Listing, config: ModelConfig, formats: Sequence[ModelFormat], suffixes: frozenset[str]
) -> bool:
    """Returns whether a folder is a version. A folder with a file that has the suffix of a model is not
    always a version: it may be a tokenizer's folder.

    `suffixes` are the suffixes of the model files in folders that are clearly versions.
    """
    if wanted := config.default_model_filename:
        return wanted in listing.files or wanted in listing.folders
    if is_version_name(name) or not suffixes:
        return bool(candidates(listing, formats))
    return bool(named_models(listing, formats)) or any(
        suffix_of(file) in suffixes for file in find_by_suffix(listing, formats)
    )


def _suffixes_of_versions(folders: Mapping[str, Folder], formats: Sequence[ModelFormat]) -> frozenset[str]:
    versions = [place.listing for name, place in folders.items() if is_version_folder(name, place, formats)]
    return frozenset(suffix_of(file) for listing in versions for file in candidates(listing, formats))


def _needed_next_to_versions(place: Folder) -> tuple[dict[str, FileEntry], list[str]]:
    """Returns those files next to the version folders that a load may need, and warnings about the files
    there that cannot be used.

    The configuration file is left out, because the fingerprint covers the fields of the configuration rather
    than the bytes of the file (fingerprint.py).
    """
    needed: dict[str, FileEntry] = {}
    warnings: list[str] = []
    for path, entry in place.listing.files.items():
        if (
            _is_config(path)
            or path in place.listing.folders
            or not ("/" not in path or path.startswith(_NEEDED_FOLDERS))
        ):
            continue
        if entry.problem:
            warnings.append(entry.problem)
        else:
            needed[place.join(path)] = entry
    return needed, warnings


def _examples(place: Folder) -> dict[str, FileEntry]:
    """Returns the examples in a model's folder, keyed by file name."""
    found = {
        path.removeprefix(f"{EXAMPLES}/"): entry
        for path, entry in place.listing.files.items()
        if path.startswith(f"{EXAMPLES}/") and not entry.problem and entry.size <= _MAX_EXAMPLE
    }
    names = sorted(name for name in found if "/" not in name and not name.startswith("."))
    return {name: found[name] for name in names[:_MAX_EXAMPLES]}


def _with_examples(version: FoundVersion, place: Folder, examples: Mapping[str, FileEntry]) -> FoundVersion:
    """Returns a copy of `version` with the examples, which are then fetched together with the version. A
    change to the examples causes no load.
    """
    if not examples or version.path is None:
        return version
    files = {place.join(f"{EXAMPLES}/{name}"): entry for name, entry in examples.items()}
    return replace(version, files={**version.files, **files}, examples=tuple(examples))


def _is_config(path: str) -> bool:
    return path in CONFIG_FILES or path.startswith("configs/")


def _no_version_reason(listing: Listing, config: ModelConfig, formats: Sequence[ModelFormat]) -> str:
    begin = f"{UNAVAILABLE_VERSIONS} '{config.name}'"
    first = f"{listing.location}/{FIRST_VERSION}"
    if loose := find_by_suffix(listing, formats):
        return (
            f"{begin}: '{listing.location}' has no version; move '{loose[0]}' into a version's folder:"
            f" '{first}/{loose[0]}'"
        )
    if any(
        is_model_folder(place, formats) for place in Folder(listing, "", listing.location).folders().values()
    ):
        return (
            f"'{listing.location}' has no version, but contains models: it is a repository; "
            "give its location instead of the location of the folder above it"
        )
    return (
        f"{begin}: '{listing.location}' has no version; expected a model file such as"
        f" '{first}/{usual_file(formats, config)}'"
    )
