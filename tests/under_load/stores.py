"""Where the models of a run lie: written to as a person who deploys would, file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Protocol


class Store(Protocol):
    """A model repository that can be written to."""

    #: How the server is told of it.
    location: str

    def put(self, path: str, content: bytes) -> None: ...

    def remove_folder(self, path: str) -> None: ...


class FolderStore:
    """A folder on this machine. Files appear complete (written beside, then renamed), as a careful deployment does it."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.location = str(root)

    def put(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = target.parent / f".{target.name}.part"
        beside.write_bytes(content)
        os.replace(beside, target)

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self._root / path)


class BucketStore:
    """An object store, through `obstore`; `location` is the URL for the server."""

    def __init__(self, location: str, store: Any) -> None:
        self.location = location
        self._store = store

    def put(self, path: str, content: bytes) -> None:
        self._store.put(path, content)

    def remove_folder(self, path: str) -> None:
        for page in self._store.list(path + "/"):
            for entry in page:
                self._store.delete(entry["path"])
