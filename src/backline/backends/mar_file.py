"""Reads small files from a TorchServe model archive, without unpacking it."""

from __future__ import annotations

import contextlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Final

from backline.engine.errors import InvalidArgument

MANIFEST: Final = "MAR-INF/MANIFEST.json"
_LARGEST: Final = 1 << 20
#: The most members of a tar file that are examined.
_MOST: Final = 100_000
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeDecodeError,  # a member that claims to have its name in UTF-8
)


class MarFile:
    """An open folder, zip or tar file. `root` is the folder in it that holds everything, with "/", or ""."""

    def __init__(self, path: Path, packed: zipfile.ZipFile | tarfile.TarFile | None) -> None:
        self.path = path
        self._packed = packed
        self._names = self._list()
        manifest = min(
            (name for name in self._names if name.endswith(MANIFEST) and name.count("/") <= 2),
            key=len,
            default=MANIFEST,
        )
        self.root = manifest.removesuffix(MANIFEST)

    @classmethod
    @contextlib.contextmanager
    def opened(cls, path: Path) -> Iterator[MarFile]:
        """Raises InvalidArgument for anything else, or a damaged archive."""
        try:
            if path.is_dir():
                yield cls(path, None)
            elif zipfile.is_zipfile(path):
                with zipfile.ZipFile(path) as opened:
                    yield cls(path, opened)
            elif is_tar(path):
                with tarfile.open(path, "r:gz") as opened_tar:
                    yield cls(path, opened_tar)
            else:
                raise InvalidArgument(
                    f"'{path}' is not a TorchServe model archive: neither a zip file nor a gzipped tar file"
                )
        except (OSError, *_DAMAGED) as error:
            raise InvalidArgument(f"'{path}' is damaged: {error}") from None

    def _list(self) -> dict[str, tarfile.TarInfo | None]:
        """The names, with tarfile's record of each; none for a folder, which is asked directly."""
        if isinstance(self._packed, zipfile.ZipFile):
            return dict.fromkeys(self._packed.namelist())
        if isinstance(self._packed, tarfile.TarFile):
            return {
                member.name.removeprefix("./"): member
                for member in islice(self._packed, _MOST)
                if member.isreg()
            }
        return {}

    def holds(self, name: str) -> bool:
        return self._open(name) is not None

    def read(self, name: str) -> bytes:
        """Reads a file. Raises InvalidArgument if it is missing or not small."""
        stream = self._open(name)
        if stream is None:
            raise InvalidArgument(f"'{self.path}' is not a TorchServe model archive: it does not hold {name}")
        with stream:
            content = stream.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise InvalidArgument(f"'{self.path}': {name} is larger than {_LARGEST} bytes")
        return content

    def _open(self, name: str) -> IO[bytes] | None:
        if self._packed is None:
            file = self.path / name
            return (
                file.open("rb")
                if file.is_file() and file.resolve().is_relative_to(self.path.resolve())
                else None
            )
        member = self.root + name
        if member not in self._names:
            return None
        if isinstance(self._packed, zipfile.ZipFile):
            return self._packed.open(member)
        return self._packed.extractfile(self._names[member] or member)


def is_tar(path: Path) -> bool:
    """Whether a file begins like a gzip file."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"
