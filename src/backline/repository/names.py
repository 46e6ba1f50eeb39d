"""Names of models and versions: what they may be, and how any name is printed."""

from __future__ import annotations

from backline.engine.errors import InvalidArgument

#: Characters that would have to be escaped in URLs, or that separate their parts.
_REFUSED_CHARACTERS = frozenset('/\\?#%"<>')


def check_name(what: str, name: str, place: str) -> None:
    """Names appear in URLs, labels of metrics and on terminals: those that need escaping there are refused.

    `what` is "model" or "version", `place` the folder or file that gives the name. Raises InvalidArgument.
    """
    odd = sorted(
        {character for character in name if character in _REFUSED_CHARACTERS or not character.isprintable()}
    )
    if odd or name != name.strip():
        which = ", ".join(repr(character) for character in odd) or "a space at its start or end"
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' has {which}; rename the folder")
    if name in {"", ".", ".."}:
        raise InvalidArgument(
            f"the name of the {what} in '{printable(place)}' is '{name}'; give it one that is the name of a folder"
        )


def printable(text: object) -> str:
    """The text with everything escaped that a terminal or a log should not get (control characters, undecodable file names)."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text)
    )
