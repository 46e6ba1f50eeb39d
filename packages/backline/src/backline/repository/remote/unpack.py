"""Reads untrusted archives. The name, kind and size of a member are checked before any bytes of the member
are stored.
"""

from __future__ import annotations

import contextlib
import importlib
import lzma
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

from backline.repository.remote.cache import Readable
from backline.repository.remote.files import name_problem
from backline.system.archive_limits import UnpackLimits, check_zip_list
from backline_client.values.errors import BacklineError, InvalidArgument, Unsupported
from backline_client.values.names import printable

#: The suffixes of archives and their kinds: zip, or the compression of a tar file.
ARCHIVES: Final = {
    ".zip": "zip",
    ".tar": "",
    ".tar.gz": "gz",
    ".tgz": "gz",
    ".tar.bz2": "bz2",
    ".tar.xz": "xz",
    ".tar.zst": "zst",
}
#: The maximum size, in bytes, of the headers of a member, including its name. Larger headers are probably an
#: attempt to exhaust the memory.
_MAX_HEADER: Final = 1 << 20
_DAMAGED: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive. Its `content` must be read before the next member is requested."""

    path: str
    size: int
    content: Readable


def archive_kind(path: str) -> str | None:
    """Returns the kind of an archive, determined by the suffix of its path; None if the file is not an
    archive.
    """
    lower = path.lower()
    return next((kind for suffix, kind in ARCHIVES.items() if lower.endswith(suffix)), None)


def members(archive: Path, kind: str, place: str, limits: UnpackLimits) -> Iterator[Member]:
    """Yields the regular files in an archive. Errors refer to the archive as `place`.

    Raises InvalidArgument if a member's name must not be used on local disk (see `name_problem`), is not
    printable, or equals the name of another member (ignoring case); if a member is a link, a device, sparse
    or encrypted; if the archive exceeds `limits`; or if the archive is damaged. The error names the member.
    Raises Unsupported for a .tar.zst before Python 3.14.
    """
    if kind == "zip":
        check_zip_list(archive, place, limits)
    names = _Names(place, limits, limits.bytes_of(archive.stat().st_size))
    with _explained(place):
        yield from _zip_members(archive, names) if kind == "zip" else _tar_members(archive, kind, names)


@contextlib.contextmanager
def _explained(place: str) -> Iterator[None]:
    """Converts the errors that the unpacking libraries raise for a damaged archive to InvalidArgument."""
    try:
        yield
    except BacklineError:
        raise
    except (OSError, *_DAMAGED) as error:
        if (
            isinstance(error, OSError) and error.errno is not None
        ):  # a disk error; gzip's own errors have no errno
            raise
        raise InvalidArgument(
            f"archive '{place}' is damaged, or not of the kind that its name says: {error}; upload it again"
        ) from None


class _Content:
    """The content of a member. Reading the content raises InvalidArgument if it is damaged."""

    def __init__(self, stream: IO[bytes], place: str) -> None:
        self._stream = stream
        self._place = place

    def read(self, size: int) -> bytes:
        with _explained(self._place):
            return self._stream.read(size)


class _Names:
    """Checks the names of members, and checks the number and size of the members against the limits."""

    def __init__(self, place: str, limits: UnpackLimits, size: int) -> None:
        self.place = place
        self._limits = limits
        self._members = 0
        self._left = size
        self._size = size
        #: Paths, keyed by their case-folded forms: on many disks, names that differ only in case refer to the
        #: same file.
        self._seen: dict[str, str] = {}

    def error(self, name: str, reason: str) -> InvalidArgument:
        return InvalidArgument(f"archive '{self.place}': member '{printable(name)}' is refused: {reason}")

    def accept(self, name: str, size: int) -> str:
        """Returns the path to which to unpack a member. Raises InvalidArgument if the member is not
        allowed.
        """
        path = name.removeprefix("./")
        if problem := name_problem(path):
            raise self.error(name, problem)
        if not path.isprintable():
            raise self.error(name, "its name has characters that cannot be printed; rename it")
        if path.casefold() in self._seen:
            raise self.error(
                name,
                f"there is already '{self._seen[path.casefold()]}'; names must differ by more than case",
            )
        self._seen[path.casefold()] = path
        self._count(name)
        self._left -= size
        if self._left < 0:
            raise self.error(
                name,
                f"the archive unpacks to more than the {self._size:,} bytes allowed for its size;"
                " check it, or split it",
            )
        return path

    def accept_folder(self, name: str) -> None:
        self._count(name)
        path = name.removeprefix("./").rstrip("/")
        if path not in {"", "."} and (problem := name_problem(path)):
            raise self.error(name, problem)

    def _count(self, name: str) -> None:
        self._members += 1
        if self._members > self._limits.files:
            raise self.error(
                name, f"the archive has more than {self._limits.files:,} files and folders; split it"
            )


def _zip_members(archive: Path, names: _Names) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            name = info.orig_filename  # `filename` ends at the first NUL
            if info.is_dir():
                names.accept_folder(name)
                continue
            mode = info.external_attr >> 16
            if stat.S_IFMT(mode) not in {0, stat.S_IFREG}:
                raise names.error(
                    name, f"it is {_kind_of_mode(mode)}; only regular files and folders are unpacked"
                )
            if info.flag_bits & 1:
                raise names.error(name, "it is encrypted; only archives without a password are unpacked")
            path = names.accept(name, info.file_size)
            with opened.open(info) as content:
                yield Member(path, info.file_size, _Content(content, names.place))


def _kind_of_mode(mode: int) -> str:
    return "a link" if stat.S_ISLNK(mode) else "a device or a pipe"


def _tar_members(archive: Path, kind: str, names: _Names) -> Iterator[Member]:
    with _decompressed(archive, kind, names.place) as plain:
        stream = _Forward(plain)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:", errors="surrogateescape") as opened:
            while info := opened.next():
                stream.allow_header()
                if info.isdir():
                    names.accept_folder(info.name)
                    continue
                if not info.isreg() or info.issparse():
                    kind_of_member = (
                        "a link"
                        if info.issym() or info.islnk()
                        else "a sparse file"
                        if info.issparse()
                        else "a device or a pipe"
                    )
                    raise names.error(
                        info.name, f"it is {kind_of_member}; only regular files and folders are unpacked"
                    )
                path = names.accept(info.name, info.size)
                content = opened.extractfile(info)
                assert content is not None, "a regular file has content"
                yield Member(path, info.size, _Content(content, names.place))


@contextlib.contextmanager
def _decompressed(archive: Path, kind: str, place: str) -> Iterator[IO[bytes]]:
    import bz2
    import gzip

    if kind == "zst" and sys.version_info < (3, 14):
        raise Unsupported(
            f"archive '{place}' needs Python 3.14 or later to be unpacked; pack it as .tar.gz or .zip"
        )
    openers: dict[str, Any] = {"": open, "gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    if kind == "zst":
        openers["zst"] = importlib.import_module("compression.zstd").open
    with openers[kind](archive, "rb") as plain:
        yield cast(IO[bytes], plain)


class _Forward:
    """A forward-only stream for tarfile. The stream rejects large headers, because they could exhaust the
    memory.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._at = 0
        self.allow_header()

    def allow_header(self) -> None:
        """Allows tarfile to read _MAX_HEADER more bytes. All headers of a member must fit into these
        bytes.
        """
        self._left = _MAX_HEADER

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._left:
            raise ValueError("one of its headers is too large")
        data = self._stream.read(size)
        self._at += len(data)
        self._left -= len(data)
        return data

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._at:
            raise ValueError("its members are not in order")
        while self._at < offset:
            self.allow_header()
            if not self.read(min(offset - self._at, _MAX_HEADER)):
                raise EOFError("it ends in the middle of a member")
        self.allow_header()
        return self._at

    def seekable(self) -> bool:
        return True
