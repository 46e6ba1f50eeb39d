"""Finds the models in a repository, whose layout is determined from its files."""

from __future__ import annotations

from collections.abc import Sequence

from backline.engine.config.model_config import Formats, ModelFormat
from backline.repository.configuration import ConfigFiles
from backline.repository.layouts.layouts import (
    CONFIG_FILES,
    FIRST_VERSION,
    Known,
    has_config,
    is_model_folder,
    is_version_folder,
    is_version_name,
    read_model,
    read_repository,
    read_single,
)
from backline.repository.layouts.model_files import candidates
from backline.repository.layouts.model_settings import has_settings, read_settings
from backline.repository.listing import Folder, Listing
from backline.repository.repository import FoundModel
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable


def scan_listing(
    listing: Listing,
    *,
    formats: Sequence[ModelFormat],
    name: str = "",
    configs: ConfigFiles | None = None,
    known: Known | None = None,
    nested: bool = False,
) -> list[FoundModel]:
    """Returns the models of a repository, sorted by name.

    A fault in one model is recorded in the `problem` of that model, and does not affect other models.
    `formats` are the formats that can be loaded, in order of preference; those of installed plug-ins are
    looked up only if there is a problem. If the repository is a single model,
    `name` is the name of the model; the default is the last part of the location. The caller keeps `known`
    between scans of a repository, so that only changed models are read again. If `nested` is set, and the
    root has only one subfolder, as in an archive of a folder, that subfolder may be the repository. Raises
    InvalidArgument if the files are not a repository.
    """
    if not isinstance(formats, Formats):
        return _scan(listing, formats, name, configs, known, nested)
    try:
        models = _scan(listing, formats, name, configs, known, nested)
    except InvalidArgument:
        further = formats.further()
        if not further:
            raise
    else:
        problems = any(model.problem or any(one.problem for one in model.versions) for model in models)
        further = formats.further() if problems else ()
        if not further:
            return models
    extended = Formats((*formats, *further))
    extended.problem = formats.problem
    return _scan(listing, extended, name, configs, known, nested)


def _scan(
    listing: Listing,
    formats: Sequence[ModelFormat],
    name: str,
    configs: ConfigFiles | None,
    known: Known | None,
    nested: bool,
) -> list[FoundModel]:
    root = Folder(listing, "", listing.location)
    if nested:
        root = _innermost(root, formats)
    folders = root.folders()
    configs = configs or ConfigFiles()
    is_named, name = bool(name), name or root.name
    if has_settings(root):
        return read_settings(root, formats, configs)
    configured = has_config(root)
    if not configured and any(
        is_model_folder(place, formats) for folder, place in folders.items() if not is_version_name(folder)
    ):
        return read_repository(root, folders, formats, configs, known)
    if any(is_version_folder(folder, place, formats) for folder, place in folders.items()):
        return [read_model(root, name, formats, configs)]
    if configured and any(candidates(place.listing, formats) for place in folders.values()):
        return [read_model(root, name, formats, configs)]
    if candidates(root.listing, formats) and not any(
        is_model_folder(place, formats) for place in folders.values()
    ):
        if not is_named and is_version_name(name):
            above = root.location.rstrip("/").rpartition("/")[0]
            raise InvalidArgument(
                f"'{root.location}' is not a model or a repository: its name says that it is version {name}"
                f" of a model. Name the model's folder, '{above}', or give the model a name with --model-name"
            )
        return [read_single(root, name, formats, configs)]
    if configured:
        model = read_model(root, name, formats, configs)
        if model.config.ensemble is not None or any(
            not version.problem for version in model.versions
        ):  # this model needs no file
            return [model]
        config_file = next(file for file in CONFIG_FILES if file in root.listing.files)
        above = root.location.rstrip("/").rpartition("/")[0]
        raise InvalidArgument(
            f"'{root.location}' is a model, not a repository (it holds {config_file}), and has no version;"
            f" name the folder above it: '{above}', or put the model's file into"
            f" '{root.location}/{FIRST_VERSION}'"
        )
    return read_repository(root, folders, formats, configs, known)


def check_named(models: Sequence[FoundModel], name: str, location: str) -> None:
    """Raises InvalidArgument if the user gave a `name`, although the repository is not a single model."""
    if not name or [model.name for model in models] == [printable(name)]:
        return
    names = ", ".join(f"'{model.name}'" for model in models) or "no model"
    raise InvalidArgument(
        f"the name '{name}' can be given only to a single model, but '{location}' is a repository that holds"
        f" {names}; leave the name out, or give the location of one model"
    )


def _innermost(root: Folder, formats: Sequence[ModelFormat]) -> Folder:
    """Returns the folder that is the repository, if it is nested in folders that have only one subfolder each
    and no configuration; otherwise returns `root` itself.
    """
    place = root
    while len(folders := place.folders()) == 1 and not has_config(place):
        (place,) = folders.values()
        if is_model_folder(place, formats):
            break
        if any(is_model_folder(folder, formats) for folder in place.folders().values()):
            return place
    return root
