"""Checks the names of models and versions."""

from __future__ import annotations

from collections.abc import Sequence

from backline.engine.errors import InvalidArgument
from backline.engine.names import fault_in_name, printable

_SHOWN = 20


def check_name(what: str, name: str, place: str) -> None:
    """Raises InvalidArgument if a name found in a repository is not valid according to engine.names.

    `what` is "model" or "version"; `place` is the folder or file that the name comes from.
    """
    fault = fault_in_name(name)
    if fault:
        raise InvalidArgument(f"the name of the {what} '{printable(place)}' {fault}; rename the folder")


def some_of(names: Sequence[str]) -> str:
    """Joins names for a message. A long list is shortened: "1, 2 and 998 more"."""
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
