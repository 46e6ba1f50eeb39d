"""The audit log: every change of what is served, as JSON lines in a file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from backline.engine.control import Change
from backline.engine.errors import BacklineError
from backline.lifecycle.records.state_folder import make_folder

log = logging.getLogger("backline.lifecycle")

_FILE = "audit.jsonl"
#: The size at which a new file is begun, in bytes; one older file is kept.
DEFAULT_LIMIT = 4_000_000
_BLOCK = 65536


class AuditLog:
    """Changes in order. If the log cannot be written, changes go on and the server's log says so."""

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self._file = folder / _FILE
        self._older = folder / f"{_FILE}.1"
        self._limit = limit
        self._failed = False

    def append(self, change: Change) -> None:
        """Adds a change."""
        line = json.dumps(
            {name: value for name, value in asdict(change).items() if value != ""}, ensure_ascii=False
        )
        try:
            make_folder(self._file.parent)
            if self._file.exists() and self._file.stat().st_size >= self._limit:
                self._file.replace(self._older)
            with self._file.open("a+b") as file:
                file.write(
                    (b"" if _ends_whole(file) else b"\n") + line.encode("utf-8", "backslashreplace") + b"\n"
                )
            self._failed = False
        except (OSError, BacklineError) as error:
            if not self._failed:  # once, not with every change
                log.error("the audit log '%s' cannot be written: %s", self._file, error)
            self._failed = True

    def history(self, model: str = "", limit: int = 100) -> list[Change]:
        """The last changes, newest first; of all models if no name is given. Skips damaged lines."""
        # The name as it appears in a line, so that most lines need no parsing.
        named = json.dumps(model, ensure_ascii=False).encode("utf-8", "backslashreplace") if model else b""
        lines = (
            line for file in (self._file, self._older) for line in _lines_backwards(file) if named in line
        )
        changes = (change for line in lines if (change := _parse(line)) is not None)
        return list(islice((change for change in changes if not model or change.model == model), limit))


def _ends_whole(file: BinaryIO) -> bool:
    """Whether the last line is complete; a killed server may leave half a line."""
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _parse(line: bytes) -> Change | None:
    try:
        change = Change(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = [value for name, value in asdict(change).items() if name != "time"]
    return (
        change
        if isinstance(change.time, int | float) and all(isinstance(text, str) for text in texts)
        else None
    )


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """The lines of a file from its end, block by block."""
    try:
        with path.open("rb") as file:
            position = file.seek(0, os.SEEK_END)
            rest = b""
            while position:
                size = min(_BLOCK, position)
                position -= size
                file.seek(position)
                rest, *lines = (file.read(size) + rest).split(b"\n")
                yield from (line for line in reversed(lines) if line)
            if rest:
                yield rest
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("the audit log '%s' cannot be read: %s", path, error.strerror)
