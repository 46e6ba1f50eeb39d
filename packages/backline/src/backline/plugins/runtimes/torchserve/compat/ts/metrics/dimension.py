"""Dimensions, which distinguish the values of a metric."""

from __future__ import annotations


class Dimension:
    """A name and a value, written "name:value"."""

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
