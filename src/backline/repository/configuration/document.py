"""A configuration as it was written: the message, and where each of its fields stands in the text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from backline.engine.errors import InvalidArgument
from backline.repository.names import printable

#: Line and column, both from 1.
Place = tuple[int, int]


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
