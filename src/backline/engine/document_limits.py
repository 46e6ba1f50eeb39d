"""How large a document may be that somebody else wrote: configurations and descriptions in TOML, JSON, YAML and protobuf's text.

A parser runs before anything is known of its text, and some need time or memory that grows much faster than that. One model's file must
not hold up the scan of all others.
"""

from __future__ import annotations

import re
from typing import Final

from backline.engine.errors import InvalidArgument

#: In bytes or characters. The largest configurations (ensembles of hundreds of steps) have some 100 KiB.
MAX_DOCUMENT: Final = 1 << 20
#: Values within each other, far below what the parsers' recursion allows.
MAX_NESTING: Final = 64
#: Parts of a dotted key in TOML: tomllib takes quadratic time and memory for them.
MAX_KEY_PARTS: Final = 32

#: Every alternative consumes what it began, closed or not, so that a search is linear.
_TOML: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5})?' r"|'''(?:[^']|'(?!''))*(?:'{3,5})?"
    r"|(?P<key>[A-Za-z0-9_-]+|" r'"(?:[^"\\\n]|\\.)*"?' r"|'[^'\n]*'?)"
    r"|(?P<dot>\.)|(?P<blank>[ \t]+)|#[^\n]*|.",
    re.DOTALL,
)  # fmt: skip


def check_size(content: str | bytes, source: str) -> None:
    """Raises InvalidArgument for a document that is too large to be parsed."""
    if len(content) > MAX_DOCUMENT:
        raise InvalidArgument(
            f"{source}: is too large ({len(content):,} bytes); at most {MAX_DOCUMENT:,} are read"
        )


def check_toml(text: str, source: str) -> None:
    """Raises InvalidArgument for a TOML document that is too large, or has a key of too many parts."""
    check_size(text, source)
    if text.count(".") < MAX_KEY_PARTS:
        return
    parts, after_dot = 0, False
    for match in _TOML.finditer(text):
        match match.lastgroup:
            case "key":
                parts = parts + 1 if after_dot else 1
                after_dot = False
            case "dot":
                after_dot = parts > 0
            case "blank":
                continue
            case _:
                parts, after_dot = 0, False
        if parts > MAX_KEY_PARTS:
            line = text.count("\n", 0, match.start()) + 1
            raise InvalidArgument(f"{source}:{line}: a key has more than {MAX_KEY_PARTS} parts")
