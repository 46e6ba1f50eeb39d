"""Which layout the files of a repository have, and which models they are."""

from __future__ import annotations

from collections.abc import Sequence

from backline.engine.errors import InvalidArgument
from backline.engine.model_format import ModelFormat
from backline.repository.layouts import CONFIG_FILES, Place, is_version_folder, read_model
from backline.repository.listing import Listing
from backline.repository.repository import FoundModel


def scan_listing(listing: Listing, *, formats: Sequence[ModelFormat], name: str = "", config_name: str = "") -> list[FoundModel]:
    """The models of a repository, by name. What is wrong with one model is noted in its `problem` and does not concern the others.

    `formats` are those that can be loaded, in order of preference; `name` is that of the only model, where the location does not give it;
    `config_name` selects `configs/<config_name>.pbtxt` of each model. Raises InvalidArgument when the files are no repository.
    """
    root = Place(listing, "", listing.location)
    for config_file in CONFIG_FILES:
        if config_file in listing.files and not any(is_version_folder(n, p, formats) for n, p in root.folders().items()):
            parent = listing.location.rstrip("/").rpartition("/")[0]
            raise InvalidArgument(
                f"'{listing.location}' is a model, not a repository (it holds {config_file}); name the folder above it: '{parent}'"
            )
    return [
        read_model(model, model_name, formats, config_name, root.problem(model_name))
        for model_name, model in root.folders().items()
        if not model_name.startswith(".")
    ]
