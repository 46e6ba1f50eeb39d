"""A configuration as it was written: the message, and where each of its fields stands in the text."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from backline.engine.errors import InvalidArgument
from backline.repository.names import printable

#: Line and column, both from 1.
Place = tuple[int, int]
#: Names from other frameworks, and what they are called here.
_ALIASES = {
    "TYPE_FLOAT": "TYPE_FP32",
    "TYPE_FLOAT32": "TYPE_FP32",
    "TYPE_DOUBLE": "TYPE_FP64",
    "TYPE_FLOAT64": "TYPE_FP64",
    "TYPE_HALF": "TYPE_FP16",
    "TYPE_FLOAT16": "TYPE_FP16",
    "TYPE_BFLOAT16": "TYPE_BF16",
    "TYPE_BYTES": "TYPE_STRING",
    "TYPE_INT": "TYPE_INT32",
}
#: Values that stand for nothing.
_NEVER_MEANT = frozenset({"TYPE_INVALID"})


@dataclass(frozen=True, slots=True)
class Document:
    """`message` is an inference.ModelConfig, `source` the file or request it came from, for messages.

    `places` has the path of every field that the text sets ("input[0].dims", "parameters[backline.lane]"), also of those whose value is
    the default, which the message itself cannot tell from nothing.
    """

    source: str
    message: Any
    places: Mapping[str, Place | None] = field(default_factory=lambda: MappingProxyType({}))

    def place(self, path: str) -> Place | None:
        """Where a field stands, or the nearest section around it that has a place."""
        while path:
            if path in self.places:
                return self.places[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None

    def error(self, reason: str, path: str = "") -> InvalidArgument:
        """An error that says where: the file, and the line and column of the field `path` where it is known."""
        place = self.place(path)
        where = f"{self.source}:{place[0]}:{place[1]}" if place else self.source
        return InvalidArgument(f"{where}: {printable(reason)}")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: ", did you mean 'x'?", or all that are known."""
    names = [known_name for known_name in known if known_name not in _NEVER_MEANT]
    near = [_ALIASES[name]] if _ALIASES.get(name) in names else difflib.get_close_matches(name, names, 1)
    return f", did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(names)}"
