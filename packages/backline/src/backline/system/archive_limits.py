"""Limits the size of unpacked archives, and checks zip files against the limits before listing their
members.
"""

from __future__ import annotations

import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from backline_client.values.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """The limits of an archive: at most `files` members, and `size` bytes when unpacked.

    An unpacked size of more than `harmless` bytes must not exceed `ratio` times the size of the archive
    either.
    """

    files: int = 100_000
    size: int = 256 << 30
    ratio: int = 100
    harmless: int = 1 << 30

    def bytes_of(self, archive_size: int) -> int:
        """Returns the maximum unpacked size, in bytes, of an archive of this size."""
        return min(self.size, max(self.harmless, self.ratio * archive_size))


#: A zip file ends with a list of its members, which is read as a whole. This is the maximum size of the list,
#: in bytes, per allowed member.
_BYTES_PER_MEMBER: Final = 256
#: The last record of a zip file, the "end of central directory record" (APPNOTE.TXT 4.3.16).
_END: Final = struct.Struct("<4s4H2LH")
#: The record before the last one in a large zip file, the "zip64 end of central directory locator" (4.3.15).
_LOCATOR: Final = struct.Struct("<4sLQL")
#: The record before the locator, the "zip64 end of central directory record" (4.3.14).
_END_64: Final = struct.Struct("<4sQ2H2L4Q")
#: The maximum distance from the start of the last record to the end of the file: a comment may follow.
_FARTHEST_END: Final = _END.size + 0xFFFF


def check_zip_list(path: Path, place: str, limits: UnpackLimits) -> None:
    """Raises InvalidArgument if the list of members of a zip file is too long to be read.

    `place` is the name of the archive in errors.
    """
    if _list_size(path) > _BYTES_PER_MEMBER * limits.files:
        raise too_many_members(place, limits)


def check_zip(path: Path, limits: UnpackLimits) -> None:
    """Raises InvalidArgument if a zip file has more members, or unpacks to more bytes, than the limits allow.

    Security: listing a malicious archive with millions of members would take a long time and exhaust the
    memory, so the size of the list is checked first. A file that is not a zip file is accepted here, because
    unpacking it will fail anyway.
    """
    check_zip_list(path, str(path), limits)
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return
    if len(members) > limits.files:
        raise too_many_members(str(path), limits)
    # zipfile never returns more bytes of a member than the member's header claims.
    check_unpacked_bytes(path, sum(member.file_size for member in members), limits)


def check_unpacked_bytes(path: Path, unpacked: int, limits: UnpackLimits) -> None:
    """Raises InvalidArgument if an archive with members of `unpacked` bytes exceeds the limits."""
    most = limits.bytes_of(path.stat().st_size)
    if unpacked > most:
        raise InvalidArgument(
            f"archive '{path}' unpacks to more than the {most:,} bytes allowed for its size; check its"
            " contents, or split it"
        )


def too_many_members(place: str, limits: UnpackLimits) -> InvalidArgument:
    """Returns the error for an archive, called `place`, that has too many members."""
    return InvalidArgument(f"archive '{place}' has more than {limits.files:,} files and folders; split it")


def _list_size(path: Path) -> int:
    """Returns the size of the list of members, as stated at the end of a zip file; 0 if it is not stated
    there.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _FARTHEST_END - _LOCATOR.size))
            tail = file.read()
            at = tail.rfind(b"PK\x05\x06")
            if at < 0 or len(tail) - at < _END.size:
                return 0
            found = int(_END.unpack_from(tail, at)[5])
            if at >= _LOCATOR.size and tail[at - _LOCATOR.size :].startswith(b"PK\x06\x07"):
                # zipfile looks for the 64-bit record directly before the locator, and ignores the offset in
                # the locator.
                file.seek(max(0, size - len(tail) + at - _LOCATOR.size - _END_64.size))
                record = file.read(_END_64.size)
                if len(record) == _END_64.size and record.startswith(b"PK\x06\x06"):
                    found = max(found, int(_END_64.unpack(record)[8]))
            return found
    except OSError:
        return 0
