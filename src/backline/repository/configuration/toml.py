"""model.toml: the fields of inference.ModelConfig in plain form, and the native settings beside them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

from backline.engine.document_limits import check_toml
from backline.engine.errors import InvalidArgument
from backline.repository.configuration.document import Document
from backline.repository.configuration.plain import read_plain
from backline.repository.configuration.toml_places import places_of_keys


def parse(text: str, source: str) -> Document:
    """The message in `text`. Raises InvalidArgument with file, line and column when it is not valid."""
    check_toml(text, source)
    try:
        table: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        reason = str(error)
        if found := re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", reason, re.DOTALL):
            raise InvalidArgument(f"{source}:{found[2]}:{found[3]}: {found[1]}") from None
        if reason.endswith(" (at end of document)"):
            lines = text.split("\n")
            raise InvalidArgument(f"{source}:{len(lines)}:{len(lines[-1]) + 1}: {reason}") from None
        raise InvalidArgument(f"{source}: {reason}") from None
    except RecursionError:
        raise InvalidArgument(f"{source}: is nested too deep") from None
    return read_plain(table, source, places_of_keys(text), is_json=False)
