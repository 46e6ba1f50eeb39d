"""Names of models and versions: which are allowed, and how to print any."""

from __future__ import annotations

from collections.abc import Sequence

from backline.engine.errors import InvalidArgument
from backline.engine.names import fault_in_name

_SHOWN = 20


def check_name(what: str, name: str, place: str) -> None:
    """Applies the rule of engine.names to a name found in a repository.

    `what` is "model" or "version"; `place` is the folder or file that the name comes from. Raises
    InvalidArgument.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' {fault}; rename the folder")


def some_of(names: Sequence[str]) -> str:
    """Names for a message, shortened if there are many: "1, 2 and 998 more"."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def printable(text: object) -> str:
    """The text with control characters and undecodable bytes escaped, safe for terminals and logs."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )
