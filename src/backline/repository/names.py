"""Names of models and versions: what they may be, and how any name is printed."""

from __future__ import annotations

from collections.abc import Sequence

from backline.engine.errors import InvalidArgument
from backline.engine.names import fault_in_name

_SHOWN = 20


def check_name(what: str, name: str, place: str) -> None:
    """Applies the rule of engine.names to a name found in a repository.

    `what` is "model" or "version", `place` the folder or file that gives the name. Raises InvalidArgument.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' {fault}; rename the folder")


def some_of(names: Sequence[str]) -> str:
    """Names for a message, of many the first ones: "1, 2 and 998 more"."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def printable(text: object) -> str:
    """The text with everything escaped that a terminal or a log should not get (control characters, undecodable file names)."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )
