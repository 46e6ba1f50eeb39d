"""Sizes for people."""

from __future__ import annotations


def size_text(count: int) -> str:
    """ "1.5 GiB", "300 MiB", "12 KiB", "17 B"."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:.0f} {unit}"
    return f"{count} B"
