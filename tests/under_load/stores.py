"""Where the models of a run lie: written to as a person who deploys would, file by file."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Protocol

from support.object_stores import Store as Bucket


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
    """A prefix of an object store."""

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
