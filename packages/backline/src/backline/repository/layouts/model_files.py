"""Finds the model among the files of a version."""

from __future__ import annotations

from collections.abc import Sequence
from posixpath import dirname

from msgspec.structs import replace

from backline.engine.config.model_config import Formats, ModelConfig, ModelFormat
from backline.repository.listing import Listing
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

#: The maximum number of names, or suffixes, that a message lists.
_LISTED = 4


def find_model(listing: Listing, formats: Sequence[ModelFormat], config: ModelConfig) -> str | None:
    """Returns the path of the model in a version's folder. The path is "" if the folder itself is the model,
    and None if there is no model.

    The model is the file that the configuration names, or else a file with the file name of a format, or else
    the only file with the suffix of a format. Formats of the configured backend come first. Raises
    InvalidArgument if several files could be the model, or if the model cannot be used.
    """
    if config.ensemble is not None:
        return ""  # an ensemble has no file
    if wanted := config.default_model_filename:
        return _usable(listing, wanted) if wanted in listing.files or wanted in listing.folders else None
    if config.backend:
        formats = sorted(formats, key=lambda form: form.backend != config.backend)
    for form in formats:
        if not form.filenames and not form.suffixes and form.backend == config.backend:
            return ""  # the backend needs no file
        for filename in form.filenames:
            if filename in listing.files:
                return dirname(_usable(listing, filename)) if form.folder else _usable(listing, filename)
    found = find_by_suffix(listing, formats)
    if len(found) > 1:
        names = ", ".join(f"'{printable(name)}'" for name in found)
        first = next(
            form.filenames[0] for form in formats if form.filenames and suffix_of(found[0]) in form.suffixes
        )
        raise InvalidArgument(
            f"'{listing.location}' holds several model files: {names}; rename one of them to '{first}', or"
            " set default_model_filename in config.pbtxt"
        )
    return _usable(listing, found[0]) if found else None


def with_backend_of_name(config: ModelConfig, listing: Listing) -> ModelConfig:
    """Returns the configuration. If the name of the model has the form `model.<backend>`, adds this backend
    to the configuration, as Triton does.

    This applies only if the configuration does not say what the model is, and no version in `listing` has
    files.
    """
    _, dot, backend = config.name.partition(".")
    said = config.backend or config.platform or config.default_model_filename or config.ensemble
    if not backend or not dot or said or any("/" in path for path in listing.files):
        return config
    return replace(config, backend=backend)


def find_by_suffix(listing: Listing, formats: Sequence[ModelFormat]) -> list[str]:
    """Returns the files directly in a folder that have a suffix of a format, sorted by name. If there are
    files of several formats, returns only those of the first format.
    """
    loose = sorted(path for path in listing.files if "/" not in path)
    for form in formats:
        if found := [path for path in loose if suffix_of(path) in form.suffixes]:
            return found
    return []


def named_models(listing: Listing, formats: Sequence[ModelFormat]) -> list[str]:
    """Returns the files directly in a folder that have the file name of a format."""
    return [filename for form in formats for filename in form.filenames if filename in listing.files]


def candidates(listing: Listing, formats: Sequence[ModelFormat]) -> list[str]:
    """Returns the files directly in a folder that could be the model: those with the file name of a format,
    or, if there are none, those with the suffix of a format.
    """
    return named_models(listing, formats) or find_by_suffix(listing, formats)


def no_model_reason(listing: Listing, formats: Sequence[ModelFormat], config: ModelConfig) -> str:
    """Returns an error message that says why no model was found in a version's folder, and what the folder
    should contain.
    """
    if config.default_model_filename:
        return (
            f"'{listing.location}' does not hold '{config.default_model_filename}', the"
            " default_model_filename of config.pbtxt"
        )
    wanted = config.backend or config.platform
    if wanted and not any(wanted.startswith(form.backend) for form in formats):
        if isinstance(formats, Formats) and (problem := formats.problem(wanted)):
            return f"'{listing.location}': {problem}"
        known = ", ".join(f"'{backend}'" for backend in dict.fromkeys(form.backend for form in formats))
        return (
            f"'{listing.location}' is for the backend '{wanted}', which does not exist; expected one of"
            f" {known}"
        )
    plan = next((path for path in listing.files if path.endswith(".plan")), "")
    if plan and not wanted:
        return (
            f"'{listing.location}' holds {plan}, a TensorRT plan, for which there is no backend: export the"
            " network to ONNX"
        )
    formats = _likely(formats, config)
    names = [f"'{form.filenames[0]}'" for form in formats if form.filenames]
    suffixes = [f"*{suffix}" for form in formats for suffix in form.suffixes]
    expected = " or ".join(
        [*_some(names), f"one file {', '.join(_some(suffixes))}"] if suffixes else _some(names)
    )
    return f"'{listing.location}' holds no model file; expected {expected}"


def usual_file(formats: Sequence[ModelFormat], config: ModelConfig) -> str:
    """Returns the file name that a message suggests for the model."""
    return config.default_model_filename or next(
        (form.filenames[0] for form in _likely(formats, config) if form.filenames), "model"
    )


def _likely(formats: Sequence[ModelFormat], config: ModelConfig) -> list[ModelFormat]:
    """Returns the formats of the configured backend, or all formats if no backend is configured. Formats that
    consist of a single file come before formats that consist of a folder.
    """
    wanted = config.backend or config.platform  # may be a platform, such as onnxruntime_onnx
    return sorted(
        [form for form in formats if wanted.startswith(form.backend)] or formats, key=lambda form: form.folder
    )


def _some(items: list[str]) -> list[str]:
    return items if len(items) <= _LISTED else [*items[:_LISTED], "..."]


def suffix_of(path: str) -> str:
    """Returns the suffix of a file name in lower case, including the dot (".onnx"); "" if the name has no
    suffix.
    """
    stem, dot, suffix = path.rpartition(".")
    return f".{suffix.lower()}" if stem and dot else ""


def _usable(listing: Listing, path: str) -> str:
    entry = listing.files.get(path)
    if entry is not None and entry.problem:
        raise InvalidArgument(entry.problem)
    return path
