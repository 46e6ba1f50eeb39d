"""Model repositories that a run writes to file by file, as a deployment would."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from support.object_stores import Store as Bucket


class Store(Protocol):
    """A writable model repository."""

    #: The location to pass to the server.
    location: str

    def put(self, path: str, content: bytes) -> None: ...

    def remove_folder(self, path: str) -> None: ...


class FolderStore:
    """A local folder. Files appear atomically (written to a temporary name, then renamed)."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.location = str(root)

    def put(self, path: str, content: bytes) -> None:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.parent / f".{target.name}.part"
        partial.write_bytes(content)
        os.replace(partial, target)

    def remove_folder(self, path: str) -> None:
        shutil.rmtree(self._root / path)


class BucketStore:
    """A prefix in an object store."""

    def __init__(self, bucket: Bucket, prefix: str) -> None:
        self.location = bucket.location(prefix)
        self._bucket = bucket
        self._prefix = prefix
        self._paths: set[str] = set()

    def put(self, path: str, content: bytes) -> None:
        self._paths.add(path)
        self._bucket.put(f"{self._prefix}/{path}", content)

    def remove_folder(self, path: str) -> None:
        for below in [known for known in self._paths if known.startswith(path + "/")]:
            self._paths.remove(below)
            self._bucket.delete(f"{self._prefix}/{below}")
