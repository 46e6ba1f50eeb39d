"""Prints tables, drawn by rich on a terminal, and as plain lines elsewhere."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from backline_client.values.names import printable

#: The colours of model states.
STYLES = {"READY": "green", "UNAVAILABLE": "bold red", "LOADING": "yellow", "UNLOADING": "yellow"}

#: The maximum length of a configuration value in a table, in characters; --json prints values in full.
_LONGEST_VALUE = 60


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> None:
    """Prints a table, as plain lines if stdout is not a terminal or is too narrow. Columns in `right` are
    right-aligned.
    """
    if sys.stdout.isatty() and _fits(columns, rows):
        _print_rich(columns, rows, right)
    else:
        print("\n".join(plain_table(columns, rows, right=right)))


def plain_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()
) -> list[str]:
    """Returns the lines of a plain table. Escapes control characters, because cells may contain text that
    clients have sent.
    """
    cells = [
        list(columns),
        *([printable(" ".join(cell.split()) if "\n" in cell else cell) for cell in row] for row in rows),
    ]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    lines = []
    for row in cells:
        parts = (
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, cell, width in zip(columns, row, widths, strict=True)
        )
        lines.append("  ".join(parts).rstrip())
    return lines


def origin_row(path: str, value: object, origin: str, where: str) -> tuple[str, str, str, str]:
    """Returns the row of a table that shows a configuration value and where it comes from."""
    shown = json.dumps(value, ensure_ascii=False)
    if len(shown) > _LONGEST_VALUE:
        shown = f"{shown[: _LONGEST_VALUE - 3]}..."
    return path.removesuffix(".string_value"), shown, origin, where


def _lines(cell: str) -> str:
    """Escapes the control characters in a cell, except line breaks."""
    return "\n".join(map(printable, cell.split("\n")))


def _fits(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Returns whether all columns fit into the width of the terminal if the last column wraps. In a table
    that does not fit, rich would truncate numbers.
    """
    import shutil  # imported here, because it imports compression libraries, which a server does not need

    widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
    return sum(widths[:-1]) + 2 * len(widths) + min(widths[-1], 16) <= shutil.get_terminal_size().columns


def _print_rich(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(
            column, justify="right" if column in right else "left", overflow="fold", no_wrap=column in right
        )
    for row in rows:
        table.add_row(*(Text(_lines(cell), STYLES.get(cell, "")) for cell in row))
    Console().print(table)
