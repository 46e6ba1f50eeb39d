"""Lists and reads the files, here in a SQLite database with a table `files (path, content)`."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from backline.repository.listing import FileEntry
from backline.repository.remote.files import SHA256, Opened, Unreachable


class DatabaseFiles:
    """The files at one location. The methods may block, and may be called on several threads at once."""

    def __init__(self, location: str) -> None:
        self.location = location
        self._path = location.removeprefix("NAME://")
        self.name = Path(self._path).stem

    def files(self) -> dict[str, FileEntry]:
        rows = self._rows("SELECT path, content FROM files")
        return {path: FileEntry(len(content), _identity(content)) for path, content in rows}

    def open(self, path: str, entry: FileEntry, offset: int) -> Opened:
        ((content,),) = self._rows("SELECT content FROM files WHERE path = ?", path)
        return Opened(offset, iter([content[offset:]]))

    def close(self) -> None:
        pass

    def _rows(self, query: str, *values: object) -> Sequence[Any]:
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True)) as database:
                return database.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise Unreachable(f"'{self.location}' cannot be read: {error}") from None


def _identity(content: bytes) -> str:
    """A file whose identity changes is downloaded again."""
    return SHA256 + hashlib.sha256(content).hexdigest()


def database_files(location: str, formats: object, contents: object) -> DatabaseFiles:
    return DatabaseFiles(location)
