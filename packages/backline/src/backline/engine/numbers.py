"""Parses and formats numbers in the form in which people write them, such as "8" or "1.5 GiB"."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS.update({_letter + "b": 1000**_power, _letter + "ib": 1024**_power, _letter: 1024**_power})
#: The maximum number of characters of a number that is parsed. int() refuses thousands of digits, and float()
#: converts them to infinity.
_MAX_DIGITS = 100


def parse_whole(text: str, least: int, most: int) -> int | None:
    """Parses a whole number in decimal digits.

    Returns None for any other text, and for a number outside the range from `least` to `most`.
    """
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        return None
    number = int(text)
    return number if least <= number <= most else None


def parse_bytes(text: str) -> int:
    """Parses a number of bytes, such as "2GiB", "500 MB" or "1073741824"; K, M, G and T without "B" mean
    powers of 1024.

    Raises ValueError for any other text.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = found and _UNITS.get(found[2].lower())
    if not found or not unit or len(found[1]) > _MAX_DIGITS:
        raise ValueError(
            f"'{text}' is not a size; expected a number of bytes, or a number with a unit,"
            " for example 1073741824, 2GiB or 500MB"
        )
    return int(float(found[1]) * unit) if "." in found[1] else int(found[1]) * unit


def format_bytes(count: int) -> str:
    """Formats a size for people to read: "1.5 GiB", "300 MiB", "12 KiB"."""
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}" if count < 1000 * factor else f"{count / factor:.0f} {unit}"
    return f"{count} B"
