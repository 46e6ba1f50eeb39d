"""Finds the configuration file in a model's folder, and reads it."""

from __future__ import annotations

from msgspec import Struct

from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration.document import Document
from backline.repository.listing import Listing
from backline_client.values.errors import InvalidArgument

CONFIG_PBTXT = "config.pbtxt"
MODEL_TOML = "model.toml"


class ConfigFiles(Struct, frozen=True):
    """Settings for finding and checking the configuration files of models.

    If a model has the file configs/<name>.pbtxt or configs/<name>.toml, this file is used. If `complete` is
    set, the configuration must name inputs and outputs. If `platforms` is given, the configuration may name
    only these platforms and those of Triton, unless it names a backend.
    """

    name: str = ""
    complete: bool = False
    platforms: frozenset[str] = frozenset()


def read(
    listing: Listing,
    name: str,
    *,
    config_name: str = "",
    complete: bool = False,
    platforms: frozenset[str] = frozenset(),
) -> ModelConfig | None:
    """Returns the configuration of the model `name` in the folder `listing`; None if it has no configuration
    file.

    If `config_name` is given and the file configs/<config_name>.pbtxt or configs/<config_name>.toml exists,
    this file is used. If `complete` is set, the configuration must name the inputs and outputs (Triton's
    --disable-auto-complete-config). If `platforms` is given, the configuration may name only these platforms
    and those of Triton, unless it names a backend.

    Raises InvalidArgument if the file cannot be read, is not valid or contradicts itself. The error names the
    file and, if known, the line and column.
    """
    path = find(listing, config_name)
    if path is None:
        if complete:
            raise missing(listing)
        return None
    # Imported late, because a repository without configuration files does not need these modules.
    from backline.repository.configuration.checks import check_complete, check_platform
    from backline.repository.configuration.reader import to_model_config

    document = parse(listing, path)
    if platforms:
        check_platform(document, name, platforms)
    if complete:
        check_complete(document, name)
    return to_model_config(document, name, listing)


def missing(listing: Listing) -> InvalidArgument:
    """Returns the error for a model without a configuration file, if a complete configuration is required."""
    return InvalidArgument(
        f"failed to open text file for read {listing.location}/{CONFIG_PBTXT}: No such file or directory;"
        " configurations are not completed from the model, so add this file"
    )


def find(listing: Listing, config_name: str = "") -> str | None:
    """Returns the path of a model's configuration file, or None if there is none. Raises InvalidArgument if
    there are two, if the file is a folder, or if `config_name` is not the name of a file.
    """
    if "/" in config_name or "\\" in config_name or config_name.startswith("."):
        raise InvalidArgument(
            "the name of a configuration is the name of a file in configs/ without its suffix, not"
            f" '{config_name}'"
        )
    pairs = [(CONFIG_PBTXT, MODEL_TOML)]
    if config_name:
        pairs.insert(0, (f"configs/{config_name}.pbtxt", f"configs/{config_name}.toml"))
    for pair in pairs:
        if folders := [path for path in pair if path in listing.folders and path not in listing.files]:
            raise InvalidArgument(
                f"'{listing.location}/{folders[0]}' is a folder; expected a configuration file"
            )
        present = [path for path in pair if path in listing.files]
        if len(present) > 1:
            raise InvalidArgument(
                f"'{listing.location}' holds both {present[0]} and {present[1]}; remove one of them"
            )
        if present:
            return present[0]
    return None


def parse(listing: Listing, path: str) -> Document:
    """Returns the document in the file `path` of a model's folder. Raises InvalidArgument if the file cannot
    be read or parsed.
    """
    source = f"{listing.location.rstrip('/')}/{path}"
    if problem := listing.files[path].problem:
        raise InvalidArgument(problem)
    try:
        content = listing.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{source}: the file is not UTF-8 text (byte {error.start})") from None
    if path.endswith(".toml"):
        from backline.repository.configuration import toml  # needed only for TOML files

        return toml.parse(content, source)
    from backline.repository.configuration import text  # needed only for config.pbtxt

    return text.parse(content, source)
