"""A configuration as it was written: its message, and the place in the text where each field is set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from msgspec import Struct, field

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable
from backline_client.values.spelling import nearest

#: The beginning of Triton's error message for a text that is no model configuration.
NOT_READ = "failed to read text proto: "
#: Line and column, both counted from 1.
Place = tuple[int, int]
#: Other frameworks' names of datatypes, and the names to use in a configuration.
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
#: Valid values that are never suggested in error messages.
_NEVER_MEANT = frozenset({"TYPE_INVALID"})


class CreationFault(InvalidArgument):
    """Raised for a fault in a configuration that Triton finds when it creates a version, rather than when it
    reads the file.

    `reason` says what is wrong, as Triton reports it for the version: the kind of the error, its text, and
    then the place of the fault. `versions` are the versions that the version policy names, or None if it
    names none.
    """

    versions: tuple[str, ...] | None = None

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Document(Struct, frozen=True):
    """A configuration before it is checked.

    `message` is an inference.ModelConfig. `source` names the file or request that contained the
    configuration, for use in errors. `places` maps the path ("input[0].dims", "parameters[backline.lane]") of
    every field that the text sets to the field's place, or to None if the place is unknown. This includes
    fields that are set to their defaults, which the message does not distinguish from unset fields.
    """

    source: str
    message: Any
    places: Mapping[str, Place | None] = field(default_factory=lambda: MappingProxyType({}))

    def place(self, path: str) -> Place | None:
        """Returns the place of the field `path`, or of the innermost enclosing section whose place is known;
        None if no place is known.
        """
        while path:
            if path in self.places:
                return self.places[path]
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return None

    def error(self, reason: str, path: str = "") -> InvalidArgument:
        """Returns an error that names the file and, if known, the line and column of the field `path`."""
        return InvalidArgument(f"{self.where(path)}: {printable(reason)}")

    def creation_fault(self, reason: str, path: str, kind: str = "Invalid argument") -> CreationFault:
        """Returns a CreationFault for the field `path`. `kind` is the name of the status code with which
        Triton reports the fault, such as "Invalid argument".
        """
        where, reason = self.where(path), printable(reason)
        return CreationFault(f"{where}: {reason}", f"{kind}: {reason} ({where})")

    def where(self, path: str) -> str:
        """Returns the file and, if known, the line and column of the field `path`."""
        place = self.place(path)
        return f"{self.source}:{place[0]}:{place[1]}" if place else self.source


def suggest(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message about an unknown `name`: ", did you mean 'x'?", or a list of the known
    names.
    """
    names = [known_name for known_name in known if known_name not in _NEVER_MEANT]
    near = [_ALIASES[name]] if _ALIASES.get(name) in names else nearest(name, names, 1)
    return f", did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(names)}"


def data_type(given: Any) -> DataType:
    """Returns the datatype in the field `data_type` of a message."""
    kinds = given.DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    return DataType.from_config_name(kinds[given.data_type].name)
