"""The nearest known name to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

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


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown `name`: ", did you mean 'x'?", or all that are known."""
    names = [known_name for known_name in known if known_name not in _NEVER_MEANT]
    near = [_ALIASES[name]] if _ALIASES.get(name) in names else difflib.get_close_matches(name, names, 1)
    return f", did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(names)}"
