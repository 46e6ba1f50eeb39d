"""Finds the configuration file in a model's folder, and reads it."""

from __future__ import annotations

from dataclasses import dataclass

from backline.engine.config.model_config import ModelConfig
from backline.engine.errors import InvalidArgument
from backline.repository.configuration.checks import check_complete, check_platform
from backline.repository.configuration.document import Document
from backline.repository.configuration.reader import to_model_config
from backline.repository.listing import Listing

CONFIG_PBTXT = "config.pbtxt"
MODEL_TOML = "model.toml"


@dataclass(frozen=True, slots=True)
class ConfigFiles:
    """How to find and check a model's configuration file.

    If a model has the file configs/<name>.pbtxt or .toml, it is used. If `complete` is set, the configuration
    must name inputs and outputs. If `platforms` is given, the configuration may name no other platform.
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

    With `config_name`, the file is configs/<config_name>.pbtxt or .toml, if there is one. If `complete` is
    set, the configuration must name the inputs and outputs (Triton's --disable-auto-complete-config). If
    `platforms` is given, the configuration may name no other platform.

    Raises InvalidArgument if the file cannot be read, is not valid or contradicts itself. The error names the
    file and, if known, the line and column.
    """
    path = find(listing, config_name)
    if path is None:
        if complete:
            raise missing(listing)
        return None
    document = parse(listing, path)
    if platforms:
        check_platform(document, name, platforms)
    if complete:
        check_complete(document, name)
    return to_model_config(document, name, listing)


def missing(listing: Listing) -> InvalidArgument:
    """Returns the error for a model without a configuration file, if a complete configuration is required."""
    return InvalidArgument(
        f"'{listing.location}' holds no {CONFIG_PBTXT}, and configurations are not completed from the model"
    )


def find(listing: Listing, config_name: str = "") -> str | None:
    """Returns the path of a model's configuration file, or None. Raises InvalidArgument if there are two such
    files.
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
    """Returns the document in the file `path` of a model's folder. Raises InvalidArgument if it cannot be
    read.
    """
    source = f"{listing.location.rstrip('/')}/{path}"
    if problem := listing.files[path].problem:
        raise InvalidArgument(problem)
    try:
        content = listing.read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{source}: is not UTF-8 text (byte {error.start})") from None
    if path.endswith(".toml"):
        from backline.repository.configuration import toml  # only for repositories that have such files

        return toml.parse(content, source)
    from backline.repository.configuration import text  # only for repositories with config.pbtxt

    return text.parse(content, source)
