"""Finds the model in a repository of the Hugging Face hub, which contains files for many libraries.

Usually `model.safetensors` and other weights are in the top-level folder, and `onnx/model.onnx` is next to
quantised variants (`onnx/model_fp16.onnx`). All these files are the same model in different forms, so only
one of them is served, together with its data files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from backline.engine.config.model_config import ModelFormat
from backline.repository.layouts.layouts import (
    has_config,
    is_model_folder,
    is_version_folder,
    is_version_name,
)
from backline.repository.layouts.model_files import find_by_suffix, named_models, suffix_of
from backline.repository.layouts.model_settings import has_settings
from backline.repository.listing import FileEntry, Folder, Listing
from backline_client.values.errors import InvalidArgument, NotFound
from backline_client.values.names import printable
from backline_client.values.spelling import nearest

#: Matches weights that no backend loads. They may be larger than the model, and are not downloaded with it.
_WEIGHTS_OF_LIBRARIES = re.compile(
    r".*\.(safetensors|gguf|h5|keras|msgpack|ot|ckpt|pth)|pytorch_model.*\.bin", re.IGNORECASE
)
#: The maximum number of files that a message lists.
_LISTED = 8


def find_served(
    listing: Listing, formats: Sequence[ModelFormat], wanted: str = ""
) -> tuple[str, Mapping[str, FileEntry]]:
    """Returns the folder of the model, and the files in this folder that a load needs, keyed by their paths
    below the folder.

    `wanted` is the path of the model's file, or the name of the file if only one folder has a file of this
    name. Without `wanted`, each of the `formats` is tried, single files before folders: the model is the
    first one found in the top-level folder or in a folder directly below it. If the listing has another
    layout, such as a repository of many models, returns all its files unchanged.

    Raises NotFound if there is no file `wanted`, and InvalidArgument if `wanted` is not a model file, or if
    no file, or more than one file, could be the model.
    """
    if wanted:
        folder, _, file = _find(listing, formats, wanted).rpartition("/")
        return folder, _with_its_data(listing.below(folder), file, formats)
    root = Folder(listing, "", listing.location)
    folders = root.folders()
    if (
        has_config(root)
        or has_settings(root)
        or any(
            is_model_folder(place, formats) or is_version_folder(name, place, formats)
            for name, place in folders.items()
        )
    ):
        return "", listing.files
    # The format matters more than the folder, because training leaves files such as optimizer.pt in the
    # top-level folder.
    for form in sorted(formats, key=lambda form: form.folder):
        for place in (root, *folders.values()):
            if named_models(place.listing, [form]) or find_by_suffix(place.listing, [form]):
                return place.path, _model_in(place, form, formats)
    if not any(_is_model(path, formats) for path in listing.files):
        suffixes = ", ".join(f"*{suffix}" for form in formats for suffix in form.suffixes)
        raise InvalidArgument(
            f"'{listing.location}' holds no model file ({suffixes}). Weights such as model.safetensors need"
            " the library that wrote them: export the model, for example to ONNX"
        )
    return "", listing.files


def hub_name(repo: str, path: str, formats: Sequence[ModelFormat]) -> str:
    """Returns the name of the model at `path` in the repository owner/`repo`.

    The name is the last part of the path that says more than the format, variant or version of the model. If
    there is no such part, as in `onnx/model_fp16.onnx`, the model is named after the repository.
    """
    words = {"model", *(form.backend for form in formats)}
    words |= {suffix.removeprefix(".") for form in formats for suffix in form.suffixes}
    words |= {PurePosixPath(name).stem for form in formats for name in form.filenames}
    for part in reversed(path.split("/") if path else ()):
        name = part.removesuffix(suffix_of(part)) if _is_model(part, formats) else part
        first = re.split(r"[._-]", name, maxsplit=1)[0]
        if not is_version_name(name) and name.lower() not in words and first.lower() not in words:
            return name
    return repo


def _find(listing: Listing, formats: Sequence[ModelFormat], wanted: str) -> str:
    if wanted in listing.files:
        found = [wanted]
    else:
        found = sorted(path for path in listing.files if path.endswith(f"/{wanted}"))
    if len(found) > 1:
        raise InvalidArgument(
            f"'{listing.location}': several files have this name: {_listed(found)}; give the path of one"
        )
    models = sorted(path for path in listing.files if _is_model(path, formats))
    if not found:
        near = nearest(wanted, models, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"its model files are {_listed(models) or 'none'}"
        raise NotFound(f"'{listing.location}' does not exist; {hint}")
    if found[0] not in models:
        raise InvalidArgument(
            f"'{listing.location}' is not a model file; the model files are {_listed(models) or 'none'}"
        )
    return found[0]


def _model_in(place: Folder, form: ModelFormat, formats: Sequence[ModelFormat]) -> Mapping[str, FileEntry]:
    """Returns the files of the model in this format. Raises InvalidArgument if there are several such
    models.
    """
    if named := named_models(place.listing, [form]):
        return place.listing.files if form.folder else _with_its_data(place.listing, named[0], formats)
    found = find_by_suffix(place.listing, [form])
    if len(found) > 1:
        raise InvalidArgument(
            f"'{place.namespace}' holds several model files: {_listed([place.join(file) for file in found])};"
            f" choose one, such as '{place.namespace}:{place.join(found[0])}'"
        )
    return _with_its_data(place.listing, found[0], formats)


def _with_its_data(listing: Listing, file: str, formats: Sequence[ModelFormat]) -> Mapping[str, FileEntry]:
    """Returns the model `file` and the other files in its folder, except other models, the data files of
    other models, and weights that no backend loads.

    The name of a data file starts with the file name of its model (`model_fp16.onnx_data`), or has the same
    stem (OpenVINO's .bin).
    """
    if not any(suffix_of(file) in form.suffixes for form in formats):
        return listing.files  # a file such as model.py, whose code may read any other file
    others = [path for path in listing.files if "/" not in path and path != file and _is_model(path, formats)]
    folders = {path.partition("/")[0] for path in listing.files if "/" in path and _is_model(path, formats)}
    stems = {_stem(other) for other in others} - {_stem(file)}
    return {
        path: entry
        for path, entry in listing.files.items()
        if path == file
        or (
            path.partition("/")[0] not in folders
            and _stem(path) not in stems
            and not path.startswith(tuple(others))
            and not _WEIGHTS_OF_LIBRARIES.fullmatch(path)
        )
    }


def _is_model(path: str, formats: Sequence[ModelFormat]) -> bool:
    """Returns whether a file, judged by its name, is a model."""
    name = path.rpartition("/")[2]
    return any(suffix_of(name) in form.suffixes or name in form.filenames for form in formats)


def _stem(path: str) -> str:
    return path.removesuffix(suffix_of(path))


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(f"'{printable(path)}'" for path in paths[:_LISTED])
    return f"{shown} and {len(paths) - _LISTED} more" if len(paths) > _LISTED else shown
