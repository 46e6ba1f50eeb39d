"""The audit log in the state folder: who changed what, who tried to, and who was refused."""

from __future__ import annotations

import heapq
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, BinaryIO

from backline.engine.control import Attempt, Change
from backline.engine.errors import BacklineError
from backline.engine.names import printable
from backline.lifecycle.records import make_folder
from backline.system.private_file import private

log = logging.getLogger("backline.lifecycle")

_FILE = "audit.jsonl"
#: Refusals are in separate files, so that a client that causes many refusals cannot push changes out of the
#: log.
_REFUSALS_FILE = "refusals.jsonl"
#: The size in bytes at which a new file is started; one older file is kept.
DEFAULT_LIMIT = 4_000_000
_BLOCK = 65536
#: Texts are truncated to this many characters, so that long errors cannot push changes out of the log.
_LONGEST = 512


class RotatedFile:
    """A file of JSON lines, and the older file that it replaced. A new file is started once the current one
    has reached `limit` bytes.
    """

    def __init__(self, file: Path, limit: int) -> None:
        self.file = file
        self._older = file.with_name(f"{file.name}.1")
        self._limit = limit

    def append(self, line: bytes) -> None:
        """Appends a line. Raises OSError or Internal if the file cannot be written."""
        make_folder(self.file.parent)
        if self.file.exists() and self.file.stat().st_size >= self._limit:
            self.file.replace(self._older)
        with open(self.file, "a+b", opener=private) as file:
            file.write((b"" if _ends_whole(file) else b"\n") + line + b"\n")

    def backwards(self) -> Iterator[bytes]:
        """Yields the lines in reverse order."""
        for file in (self.file, self._older):
            yield from _lines_backwards(file)


class AuditLog:
    """The log of changes and refusals. If it cannot be written, the server logs an error and continues.

    Control characters in texts are escaped. Otherwise a caller could write terminal commands into the files,
    which would take effect when an administrator prints a file.
    """

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self._changes = RotatedFile(folder / _FILE, limit)
        self._refusals = RotatedFile(folder / _REFUSALS_FILE, limit)
        self._failed = False

    def append(self, entry: Change | Attempt) -> None:
        refused = isinstance(entry, Attempt) and entry.outcome == "refused"
        file = self._refusals if refused else self._changes
        stated = {
            name: printable(value[:_LONGEST]) if isinstance(value, str) else value
            for name, value in asdict(entry).items()
            if value not in ("", 0)
        }
        try:
            file.append(json.dumps(stated, ensure_ascii=False).encode("utf-8", "backslashreplace"))
            self._failed = False
        except (OSError, BacklineError) as error:
            if not self._failed:  # logged once, not again with every change
                log.error(
                    "the audit log '%s' cannot be written, so changes and refusals go unrecorded: %s",
                    file.file,
                    error,
                )
            self._failed = True

    def history(self, model: str = "", limit: int = 100) -> list[Change]:
        """Returns up to `limit` of the latest changes to a model, or to all models if `model` is empty,
        newest first. Skips damaged lines.
        """
        # Most lines about other models need no parsing, because they do not contain the name of this model.
        named = json.dumps(model, ensure_ascii=False).encode("utf-8", "backslashreplace") if model else b""
        lines = (line for line in self._changes.backwards() if named in line)
        changes = (entry for line in lines if isinstance(entry := _parse(line), Change))
        return list(islice((change for change in changes if not model or change.model == model), limit))

    def entries(self, limit: int = 100, after: float = 0.0) -> list[Change | Attempt]:
        """Returns up to `limit` of the latest entries, newest first, and only those made later than `after`,
        in seconds since 1970. Skips damaged lines.
        """
        files = (_entries(self._changes.backwards()), _entries(self._refusals.backwards()))
        merged = heapq.merge(*files, key=lambda entry: entry.time, reverse=True)
        return list(islice(takewhile(lambda entry: entry.time > after, merged), limit))


def _entries(lines: Iterable[bytes]) -> Iterator[Change | Attempt]:
    for line in lines:
        entry = _parse(line)
        if entry is not None:
            yield entry


def _parse(line: bytes) -> Change | Attempt | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
        entry = Attempt(**found) if "outcome" in found else Change(**found)
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = ("time", "suppressed")
    valid = all(
        isinstance(getattr(entry, field.name), (int, float) if field.name in numbers else str)
        for field in fields(entry)
    )
    return entry if valid else None


def _ends_whole(file: BinaryIO) -> bool:
    """Returns whether the last line of a file is complete. A server that was killed while it wrote may
    have left a partial line.
    """
    if file.seek(0, os.SEEK_END) == 0:
        return True
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _lines_backwards(path: Path) -> Iterator[bytes]:
    """Yields the lines of a file in reverse order, reading block by block."""
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
