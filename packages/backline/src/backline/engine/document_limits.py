"""Limits the size of documents that come from outside, in TOML, JSON, YAML and protobuf's text format.

Security: the content of a document can be checked only after it has been parsed, but for some documents
parsers need time or memory out of all proportion to the size. The file of one model must not delay the scan
of all other models.
"""

from __future__ import annotations

import re
from typing import Final

from backline_client.values.errors import InvalidArgument

#: The maximum size of a document, in bytes or characters. The largest configurations in use are about 100
#: KiB.
MAX_DOCUMENT: Final = 1 << 20
#: The maximum nesting depth, which is far below the depth at which the recursion of the parsers fails.
MAX_NESTING: Final = 64
#: The maximum number of parts in a dotted TOML key. The time and memory that tomllib takes grow with the
#: square of this number.
MAX_KEY_PARTS: Final = 32

#: Matches a token. Each alternative matches a whole token, even a string that is not closed, so that a search
#: takes linear time.
_TOML: Final = (
    r'(?s)"""(?:[^"\\]|\\.|"(?!""))*(?:"{3,5})?' r"|'''(?:[^']|'(?!''))*(?:'{3,5})?"
    r"|(?P<key>[A-Za-z0-9_-]+|" r'"(?:[^"\\\n]|\\.)*"?' r"|'[^'\n]*'?)"
    r"|(?P<dot>\.)|(?P<blank>[ \t]+)|#[^\n]*|."
)  # fmt: skip


def check_size(content: str | bytes, source: str) -> None:
    """Raises InvalidArgument for a document that is too large to be parsed."""
    if len(content) > MAX_DOCUMENT:
        raise InvalidArgument(
            f"{source}: the document has {len(content):,} bytes, more than the limit of {MAX_DOCUMENT:,}"
        )


def check_toml(text: str, source: str) -> None:
    """Raises InvalidArgument for a TOML document that is too large, or that has a key with too many parts."""
    check_size(text, source)
    if text.count(".") < MAX_KEY_PARTS:
        return
    parts, after_dot = 0, False
    for match in re.finditer(_TOML, text):
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
