"""Limits the size of documents from outside, in TOML, JSON, YAML and protobuf's text format.

Parsers run before anything else can check a document, and some take time or memory out of proportion to its
size. One model's file must not delay the scan of all others.
"""

from __future__ import annotations

import re
from typing import Final

from backline.engine.errors import InvalidArgument

#: The maximum size of a document, in bytes or characters. The largest real configurations have about 100 KiB.
MAX_DOCUMENT: Final = 1 << 20
#: The maximum nesting depth, far below what the parsers' recursion allows.
MAX_NESTING: Final = 64
#: Maximum number of parts in a dotted TOML key, for which tomllib takes quadratic time and memory.
MAX_KEY_PARTS: Final = 32

#: Each alternative matches a whole token, closed or not, so that a search takes linear time.
_TOML: Final = re.compile(
    r'"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5})?' r"|'''(?:[^']|'(?!''))*(?:'{3,5})?"
    r"|(?P<key>[A-Za-z0-9_-]+|" r'"(?:[^"\\\n]|\\.)*"?' r"|'[^'\n]*'?)"
    r"|(?P<dot>\.)|(?P<blank>[ \t]+)|#[^\n]*|.",
    re.DOTALL,
)  # fmt: skip


def check_size(content: str | bytes, source: str) -> None:
    """Raises InvalidArgument for a document too large to parse."""
    if len(content) > MAX_DOCUMENT:
        raise InvalidArgument(f"{source}: too large ({len(content):,} bytes); the limit is {MAX_DOCUMENT:,}")


def check_toml(text: str, source: str) -> None:
    """Raises InvalidArgument for a TOML document that is too large or has a key with too many parts."""
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
