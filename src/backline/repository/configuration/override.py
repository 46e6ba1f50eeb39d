"""The configuration that a load request brings along: JSON instead of a file."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from backline.engine.errors import InvalidArgument
from backline.engine.model_config import ModelConfig
from backline.repository.configuration.checks import check_complete
from backline.repository.configuration.document import Document
from backline.repository.configuration.plain import read_plain
from backline.repository.configuration.reader import to_model_config
from backline.repository.listing import Listing
from backline.repository.names import printable

SOURCE = "load parameter 'config'"
#: How Triton begins what it says about a text that it cannot read.
_UNREADABLE = "Invalid config override"


def read_override(text: str, name: str, listing: Listing, *, complete: bool = False) -> ModelConfig:
    """The configuration in the JSON `text` of a load of the model `name`, whose folder, with files of labels and the like, is `listing`.

    One that must be `complete` names the inputs and outputs. Raises InvalidArgument, with the path of the field, when it is not valid or
    contradicts itself.
    """
    document = parse(text)
    if complete:
        check_complete(document, name)
    return to_model_config(document, name, listing)


def parse(text: str) -> Document:
    """The document in a JSON text."""
    try:
        table = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise InvalidArgument(
            f"{_UNREADABLE}:{error.lineno}:{error.colno}: is not JSON: {error.msg}"
        ) from None
    except RecursionError:
        raise InvalidArgument(f"{_UNREADABLE}: is nested too deep") from None
    if re.search(r"\\u[dD][89a-fA-F]", text):  # half of a character that needs two
        try:
            json.dumps(table, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise InvalidArgument(
                f"{_UNREADABLE}: has an escape such as \\ud800 that stands for no character"
            ) from None
    if not isinstance(table, dict):
        raise InvalidArgument(
            f"{_UNREADABLE}: expected an object with the fields of a model configuration, not {json.dumps(table)[:40]}"
        )
    return replace(read_plain(table, _UNREADABLE, {}, is_json=True), source=SOURCE)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise InvalidArgument(f"{_UNREADABLE}: '{printable(repeated)}' is given more than once")
    return table
