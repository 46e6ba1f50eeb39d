"""A model repository in a folder: which models, versions and files it holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from backline.engine.engine import version_order
from backline.engine.errors import BacklineError, InvalidArgument, NotFound
from backline.engine.model_config import ModelConfig, VersionPolicy

CONFIG_FILE = "config.pbtxt"
#: Names of model files, in order of preference, and the suffixes by which the only candidate of a folder is recognised.
FILENAMES = ("model.onnx",)
SUFFIXES = (".onnx",)
#: Folders beside the versions that hold something else (Triton's names).
_OTHER_FOLDERS = frozenset({"configs", "warmup", "initial_state"})
#: Characters that would have to be escaped in URLs, or that separate their parts.
_REFUSED_CHARACTERS = frozenset('/\\?#%"<>')


@dataclass(frozen=True, slots=True)
class FoundVersion:
    """A version of a model. `file` is the model file, absolute; None where `problem` says why there is none."""

    version: str
    folder: Path
    file: Path | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model of a repository.

    `versions` are those that the version policy selects, oldest first. `problem` says why nothing of the model can be served; empty when
    something can. `warnings` are for the person who wrote the files.
    """

    name: str
    repository: Path
    folder: Path
    config: ModelConfig
    config_file: Path | None = None
    versions: tuple[FoundVersion, ...] = ()
    problem: str = ""
    warnings: tuple[str, ...] = ()


def scan(path: Path) -> list[FoundModel]:
    """The models of the repository in the folder `path`, by name: `<path>/<model>/<version>/<file>`, with `<model>/config.pbtxt` if wanted.

    What is wrong with one model is noted in its `problem` and does not concern the others. Raises NotFound when the folder does not exist,
    InvalidArgument when it cannot be read or is something else.
    """
    try:
        root = path.resolve(strict=True)
        if not root.is_dir():
            raise InvalidArgument(f"model repository '{path}' is a file, not a folder that holds <model>/<version>/<file>")
        entries = sorted(root.iterdir())
    except FileNotFoundError:
        raise NotFound(f"model repository '{path}' does not exist") from None
    except (OSError, RuntimeError) as error:
        raise InvalidArgument(f"model repository '{path}' cannot be read: {_reason(error)}") from None
    if (root / CONFIG_FILE).is_file():
        raise InvalidArgument(f"'{path}' is a model, not a repository (it holds {CONFIG_FILE}); name the folder above it: '{root.parent}'")
    return [_scan_model(root, entry) for entry in entries if not entry.name.startswith(".") and _is_folder_or_link(entry)]


def scan_all(paths: Iterable[Path]) -> list[FoundModel]:
    """The models of several repositories; a name that more than one of them holds is a problem of all its models, as in Triton.

    A repository named twice counts once. Raises as `scan` does.
    """
    roots = list(dict.fromkeys(path.resolve() for path in paths))
    found = [model for root in roots for model in scan(root)]
    by_name: dict[str, list[FoundModel]] = {}
    for model in found:
        by_name.setdefault(model.name, []).append(model)
    return [model if len(by_name[model.name]) == 1 else _refuse_duplicate(model, by_name[model.name]) for model in found]


def _refuse_duplicate(model: FoundModel, same: list[FoundModel]) -> FoundModel:
    folders = ", ".join(f"'{other.folder}'" for other in same)
    return replace(model, problem=f"model '{model.name}' is in more than one repository: {folders}; rename or remove all but one")


def _scan_model(root: Path, folder: Path) -> FoundModel:
    name = folder.name
    model = FoundModel(name, root, folder, ModelConfig(name))
    try:
        _check_name("model", folder)
        _check_inside(root, folder)
        config_file = folder / CONFIG_FILE
        if config_file.exists() or config_file.is_symlink():
            _check_inside(root, config_file)
            model = replace(model, config_file=config_file)
            from backline.repository import config_pbtxt  # the text format's parser is only loaded when there is a text

            config = config_pbtxt.read(config_file, name)
            model = replace(model, config=config, warnings=config.warnings)
        found, warnings = _scan_versions(root, model)
        versions, missing = select(found, model.config.version_policy)
        if not versions:
            raise InvalidArgument(_no_version_reason(model, found, missing))
        warnings += [f"version_policy of '{name}' names version {version}, which '{folder}' does not hold" for version in missing]
        return replace(model, versions=tuple(versions), warnings=model.warnings + tuple(warnings))
    except BacklineError as error:
        return replace(model, problem=error.message)
    except (OSError, RuntimeError) as error:
        return replace(model, problem=f"'{printable(folder)}' cannot be read: {_reason(error)}")


def _scan_versions(root: Path, model: FoundModel) -> tuple[list[FoundVersion], list[str]]:
    found: list[FoundVersion] = []
    warnings: list[str] = []
    for folder in model.folder.iterdir():
        name = folder.name
        if name.startswith(".") or name in _OTHER_FOLDERS or not _is_folder_or_link(folder):
            continue
        numeric = name.isascii() and name.isdigit()
        if numeric and len(name) > 1 and name[0] == "0":
            warnings.append(f"'{folder}' is ignored: the number of a version has no leading zero")
            continue
        try:
            _check_name("version", folder)
            _check_inside(root, folder)
            file = _find_file(folder, model.config.default_model_filename)
            if file is not None:
                _check_inside(root, file)
                found.append(FoundVersion(name, folder, file))
            elif numeric:
                found.append(FoundVersion(name, folder, problem=_no_file_reason(folder, model.config.default_model_filename)))
        except BacklineError as error:
            found.append(FoundVersion(name, folder, problem=error.message))
        except (OSError, RuntimeError) as error:
            found.append(FoundVersion(name, folder, problem=f"'{printable(folder)}' cannot be read: {_reason(error)}"))
    return sorted(found, key=lambda version: version_order(version.version)), warnings


def select(found: list[FoundVersion], policy: VersionPolicy) -> tuple[list[FoundVersion], list[str]]:
    """The versions that a policy selects from `found` (oldest first), and those it names that are not there."""
    if policy.specific is not None:
        present = {version.version for version in found}
        return [v for v in found if v.version in policy.specific], [name for name in policy.specific if name not in present]
    if policy.latest is not None:
        return found[-policy.latest :], []
    return found, []


def _find_file(folder: Path, wanted: str) -> Path | None:
    """The model file of a version's folder. Raises InvalidArgument when several could be it."""
    if wanted:
        file = folder / wanted
        return file if file.exists() or file.is_symlink() else None
    for filename in FILENAMES:
        file = folder / filename
        if file.exists() or file.is_symlink():
            return file
    candidates = sorted(file for file in folder.iterdir() if file.suffix in SUFFIXES and not file.name.startswith("."))
    if len(candidates) > 1:
        names = ", ".join(f"'{printable(file.name)}'" for file in candidates)
        raise InvalidArgument(
            f"'{folder}' holds several model files: {names}; name one '{FILENAMES[0]}', or set default_model_filename in {CONFIG_FILE}"
        )
    return candidates[0] if candidates else None


def _no_file_reason(folder: Path, wanted: str) -> str:
    if wanted:
        return f"'{folder}' does not hold '{wanted}', the default_model_filename of {CONFIG_FILE}"
    return f"'{folder}' holds no model file; expected {' or '.join(repr(name) for name in FILENAMES)} or one file *{', *'.join(SUFFIXES)}"


def _no_version_reason(model: FoundModel, found: list[FoundVersion], missing: list[str]) -> str:
    folder = model.folder
    if missing:
        held = ", ".join(version.version for version in found) or "none"
        return f"'{folder}' holds none of the versions that version_policy names: {', '.join(missing)} (it holds {held})"
    loose = _find_loose(folder)
    if loose is not None:
        return f"'{folder}' has no version; move '{loose.name}' into a version's folder: '{folder / '1' / loose.name}'"
    expected = model.config.default_model_filename or FILENAMES[0]
    return f"'{folder}' has no version; expected a model file such as '{folder / '1' / expected}'"


def _find_loose(folder: Path) -> Path | None:
    return next((file for file in sorted(folder.iterdir()) if file.suffix in SUFFIXES and file.is_file()), None)


def _check_name(what: str, folder: Path) -> None:
    """Names appear in URLs, labels of metrics and on terminals: those that need escaping there are refused."""
    name = folder.name
    odd = sorted({character for character in name if character in _REFUSED_CHARACTERS or not character.isprintable()})
    if odd or name != name.strip():
        which = ", ".join(repr(character) for character in odd) or "a space at its start or end"
        raise InvalidArgument(f"the name of the {what} '{printable(folder)}' has {which}; rename the folder")


def _check_inside(root: Path, path: Path) -> None:
    """Raises InvalidArgument for a link out of the repository, or to nowhere."""
    try:
        target = path.resolve(strict=True)
    except FileNotFoundError:
        raise InvalidArgument(f"'{printable(path)}' is a link to something that does not exist") from None
    if not target.is_relative_to(root):
        raise InvalidArgument(f"'{path}' leads out of the model repository, to '{target}'; copy it into '{root}' instead")


def _is_folder_or_link(path: Path) -> bool:
    """Whether a path is a folder, or a link that may have been meant to lead to one."""
    try:
        return path.is_dir() or (path.is_symlink() and not path.is_file())
    except OSError:
        return True  # cannot be looked at, so its model has a problem that should be reported


def printable(text: object) -> str:
    """The text with everything escaped that a terminal or a log should not get (control characters, undecodable file names)."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
