"""Names of models and versions: what they may be, and how any name is printed."""

from __future__ import annotations

from backline.engine.errors import InvalidArgument
from backline.engine.names import fault_in_name


def check_name(what: str, name: str, place: str) -> None:
    """Applies the rule of engine.names to a name found in a repository.

    `what` is "model" or "version", `place` the folder or file that gives the name. Raises InvalidArgument.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' {fault}; rename the folder")


def printable(text: object) -> str:
    """The text with everything escaped that a terminal or a log should not get (control characters, undecodable file names)."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )
