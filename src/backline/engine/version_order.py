"""Which of two versions is newer."""

from __future__ import annotations

import re


def version_order(version: str) -> tuple[tuple[tuple[int, int, str], ...], tuple[int, ...]]:
    """The natural order of versions: runs of digits compare as numbers, before runs of other characters.

    No two versions are equal: if two differ only in leading zeros, the one with fewer comes first.
    """
    parts = re.findall(r"[0-9]+|[^0-9]+", version)
    # ASCII digits only: str.isdigit also accepts "²", which int does not.
    natural = tuple((0, int(part), "") if part[0] in "0123456789" else (1, 0, part) for part in parts)
    return natural, tuple(map(len, parts))
