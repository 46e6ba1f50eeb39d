"""Documentation pages as data: fenced blocks, tables, links and code spans."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: The distributions.
CLIENT = ROOT / "packages/backline-client"
SERVER = ROOT / "packages/backline"
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "benchmarks/README.md",
    "examples/README.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
)
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block; `line` is the line of its opening fence."""

    language: str
    text: str
    line: int


@cache
def read(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def prose(page: str) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", read(page))


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 1) for match in _FENCE.finditer(text)
    ]


def tables(page: str, first_column: str) -> list[list[dict[str, str]]]:
    """The rows, keyed by column, of every table whose first column has this title."""
    found = []
    lines = read(page).split("\n")
    for number, line in enumerate(lines):
        if line.startswith(f"| {first_column} |"):
            head = _cells(line)
            rows = itertools.takewhile(lambda row: row.startswith("|"), lines[number + 2 :])
            found.append([dict(zip(head, _cells(row), strict=True)) for row in rows])
    return found


def table(page: str, first_column: str) -> list[dict[str, str]]:
    """The rows of the only table whose first column has this title."""
    (found,) = tables(page, first_column)
    return found


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def code(text: str) -> list[str]:
    """All code spans in a cell or a page."""
    return re.findall(r"`([^`\n]+)`", text)
