"""What the files of a version hold, wherever they lie: servers that share a cache of answers agree by it on what they have loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path


class Content:
    """The files `names` below `root`, read once. May be used on any thread; raises OSError when a file cannot be read."""

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self._files = {name: root / name for name in sorted(names)}
        self._before = self._state()
        digest = hashlib.sha256()
        for name, path in self._files.items():
            with path.open("rb") as file:
                digest.update(
                    f"{name!r}:".encode("utf-8", "surrogatepass")
                    + hashlib.file_digest(file, "sha256").digest()
                )
        self.digest = digest.hexdigest()

    @property
    def unchanged(self) -> bool:
        """Whether no file was written or replaced since before they were read."""
        return self._state() == self._before

    def _state(self) -> list[tuple[int, int, int, int]]:
        found = [path.stat() for path in self._files.values()]
        return [(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns) for status in found]
