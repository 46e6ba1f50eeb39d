"""How the model is found among the files of a version."""

from __future__ import annotations

from collections.abc import Sequence
from posixpath import dirname

from backline.engine.errors import InvalidArgument
from backline.engine.model_format import ModelFormat
from backline.repository.listing import Listing
from backline.repository.names import printable


def find_model(listing: Listing, formats: Sequence[ModelFormat], wanted: str = "") -> str | None:
    """The model in a version's folder: the path of its file or folder, "" for the folder itself, None when there is none.

    `wanted` is the file that the configuration names. Raises InvalidArgument when several files could be the model, or when the one that is
    it cannot be used.
    """
    if wanted:
        return _usable(listing, wanted) if wanted in listing.files or wanted in listing.folders else None
    for form in formats:
        for filename in form.filenames:
            if filename in listing.files:
                return dirname(_usable(listing, filename)) if form.folder else _usable(listing, filename)
    candidates = find_by_suffix(listing, formats)
    if len(candidates) > 1:
        names = ", ".join(f"'{printable(name)}'" for name in candidates)
        raise InvalidArgument(
            f"'{listing.location}' holds several model files: {names}; name one '{formats[0].filenames[0]}',"
            " or set default_model_filename in config.pbtxt"
        )
    return _usable(listing, candidates[0]) if candidates else None


def find_by_suffix(listing: Listing, formats: Sequence[ModelFormat]) -> list[str]:
    """The files directly in a folder that end as model files do, by name."""
    suffixes = tuple(suffix for form in formats for suffix in form.suffixes)
    return sorted(path for path in listing.files if "/" not in path and path.endswith(suffixes)) if suffixes else []


def holds_model(listing: Listing, formats: Sequence[ModelFormat]) -> bool:
    """Whether a folder holds the files of a model directly, or several that could be it."""
    return any(filename in listing.files for form in formats for filename in form.filenames) or bool(find_by_suffix(listing, formats))


def no_model_reason(listing: Listing, formats: Sequence[ModelFormat], wanted: str = "") -> str:
    """Why a version's folder in which no model was found is none, and what it should hold."""
    if wanted:
        return f"'{listing.location}' does not hold '{wanted}', the default_model_filename of config.pbtxt"
    names = [f"'{filename}'" for form in formats for filename in form.filenames]
    suffixes = [f"*{suffix}" for form in formats for suffix in form.suffixes]
    expected = " or ".join([*names, f"one file {', '.join(suffixes)}"] if suffixes else names)
    return f"'{listing.location}' holds no model file; expected {expected}"


def _usable(listing: Listing, path: str) -> str:
    entry = listing.files.get(path)
    if entry is not None and entry.problem:
        raise InvalidArgument(entry.problem)
    return path
