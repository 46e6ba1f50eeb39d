"""The audit log in the state folder: who changed what, who tried to, and who was refused."""

from __future__ import annotations

import heapq
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import inf, isfinite
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import msgspec
from msgspec.structs import asdict

from backline.lifecycle.records import make_folder
from backline_client.system.file_lock import edited
from backline_client.system.private_file import NotRegular, check_regular, regular, replacement
from backline_client.values.control import Attempt, Change, Page
from backline_client.values.decodable import decodable
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.names import printable

log = logging.getLogger("backline.lifecycle")

_FILE = "audit.jsonl"
#: Refusals are in separate files, so that a client that causes many refusals cannot push changes out of the
#: log.
_REFUSALS_FILE = "refusals.jsonl"
#: The size in bytes at which a new file is started; one older file, of at most this size, is kept.
DEFAULT_LIMIT = 4_000_000
_BLOCK = 65536
#: Lines of more bytes are no entries of ours, and are skipped.
_LONGEST_LINE = 65536
#: Texts are truncated to this many characters, so that long errors cannot push changes out of the log.
_LONGEST = 512
#: A page ends after this many bytes of lines, so that it takes milliseconds to encode.
_PAGE_BYTES = 256 * 1024
#: Seconds to wait for another server that writes to the same file, which takes milliseconds. A process that
#: was stopped in the meantime must not keep this server from ending.
_LOCK_SECONDS = 30.0
_TIME = b'{"time":'

#: A line, and whether it is about a refusal.
Line: TypeAlias = tuple[bytes, bool]
_Entry = TypeVar("_Entry", bound=Change | Attempt)


class RotatedFile:
    """A file of JSON lines, and an older file. Once the current file has reached `limit` bytes, its lines
    move to the older file, which then keeps at most `limit` bytes: a fair share for each caller.
    """

    def __init__(self, file: Path, limit: int) -> None:
        """Raises InvalidArgument if one of the files exists and is not a regular file."""
        self.file = file
        self._older = file.with_name(f"{file.name}.1")
        self._limit = limit
        for path in (self._older, file):
            try:
                check_regular(path)
            except NotRegular as error:
                raise InvalidArgument(
                    f"the audit log '{path}' cannot be used: {error.strerror}. Remove it, or choose another"
                    " folder with --state-dir"
                ) from None

    def append(self, lines: Sequence[bytes]) -> None:
        """Appends lines. Raises OSError or Internal if the file cannot be written."""
        make_folder(self.file.parent)
        with edited(self.file, _LOCK_SECONDS):  # another server may use the same state folder
            if self.file.exists() and self.file.stat().st_size >= self._limit:
                self._rotate()
            with open(self.file, "a+b", opener=regular) as file:
                file.write((b"" if _ends_whole(file) else b"\n") + b"".join(line + b"\n" for line in lines))

    def _rotate(self) -> None:
        # A server that was killed between the two steps below has left the same lines in both files.
        lines = list(dict.fromkeys(self.backwards()))
        with replacement(self._older) as new:
            new.write_bytes(b"".join(line + b"\n" for line in reversed(fair_share(lines, self._limit))))
        self.file.unlink()

    def backwards(self) -> Iterator[bytes]:
        """Yields the lines in reverse order. Of a file that is much larger than the limit, and so not ours,
        yields only the last lines.
        """
        for file in (self.file, self._older):
            yield from _lines_backwards(file, 2 * self._limit + _BLOCK)


class AuditLog:
    """The log of changes and refusals. If it cannot be written, the server logs an error and continues.

    Control characters in texts are escaped. Otherwise a caller could write terminal commands into the files,
    which would take effect when an administrator prints a file.
    """

    def __init__(self, folder: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        """Raises InvalidArgument if there is something else in place of a file, such as a named pipe."""
        self._changes = RotatedFile(folder / _FILE, limit)
        self._refusals = RotatedFile(folder / _REFUSALS_FILE, limit)
        self._failed = False

    def append(self, entry: Change | Attempt) -> None:
        self.write([line_of(entry)])

    def write(self, lines: Sequence[Line]) -> None:
        """Appends lines in their order."""
        for file, about_refusals in ((self._changes, False), (self._refusals, True)):
            own = [line for line, refused in lines if refused is about_refusals]
            if not own:
                continue
            try:
                file.append(own)
                self._failed = False
            except (OSError, BacklineError) as error:
                if not self._failed:  # logged once, not again with every change
                    log.error(
                        "the audit log '%s' cannot be written, so changes and refusals go unrecorded: %s",
                        file.file,
                        error,
                    )
                self._failed = True

    def history(self, model: str = "", limit: int = 100, cursor: str = "") -> Page[Change]:
        """Returns up to `limit` of the latest changes to a model, or to all models if `model` is empty,
        newest first. Skips damaged lines. A page may end early; its cursor continues it.

        Raises InvalidArgument for a cursor that no page has.
        """
        # Most lines about other models need no parsing, because they do not contain the name of this model.
        named = json.dumps(model, ensure_ascii=False).encode("utf-8", "backslashreplace") if model else b""
        lines = (line for line in self._changes.backwards() if named in line)

        def change(line: bytes) -> Change | None:
            entry = _parse(line)
            return entry if isinstance(entry, Change) and entry.model == (model or entry.model) else None

        return _page(_timed(lines), change, limit, 0.0, cursor)

    def entries(self, limit: int = 100, after: float = 0.0, cursor: str = "") -> Page[Change | Attempt]:
        """Returns up to `limit` of the latest entries, newest first, and only those made later than `after`,
        in seconds since 1970. Skips damaged lines. A page may end early; its cursor continues it.

        Raises InvalidArgument for a cursor that no page has.
        """
        files = (_timed(self._changes.backwards()), _timed(self._refusals.backwards()))
        merged = heapq.merge(*files, key=lambda timed: timed[0], reverse=True)
        return _page(merged, _parse, limit, after, cursor)


def line_of(entry: Change | Attempt) -> Line:
    stated = {
        name: printable(value[:_LONGEST]) if isinstance(value, str) else value
        for name, value in asdict(entry).items()
        if value not in ("", 0)
    }
    refused = isinstance(entry, Attempt) and entry.outcome == "refused"
    return json.dumps(stated, ensure_ascii=False).encode("utf-8", "backslashreplace"), refused


def fair_share(lines: Sequence[bytes], limit: int) -> list[bytes]:
    """Returns the lines, newest first, that a log of `limit` bytes keeps: the latest of each caller.

    No caller can push out lines of another caller that takes less than an equal share, and nobody's failures
    push out changes. Drops damaged lines.
    """
    owned = [(owner, line) for line in lines if (owner := _owner(line)) is not None]
    sizes: Counter[tuple[str, bool]] = Counter()
    for owner, line in owned:
        sizes[owner] += len(line) + 1
    left = dict.fromkeys(sizes, _equal_share(sizes.values(), limit))
    kept = []
    for owner, line in owned:
        left[owner] -= len(line) + 1
        if left[owner] >= 0:
            kept.append(line)
    return kept


def _equal_share(sizes: Iterable[int], limit: int) -> int:
    """Returns the share s for which the sum of min(size, s) is at most `limit`."""
    ordered = sorted(sizes)
    for number, size in enumerate(ordered):
        share = limit // (len(ordered) - number)
        if size > share:
            return share
        limit -= size
    return max(ordered, default=0)


@decodable
class _Owned(msgspec.Struct):
    """The fields of a line that tell whose it is."""

    who: str = ""
    action: str = ""
    outcome: str = ""
    identity: str = ""
    address: str = ""


_decode_owned = msgspec.json.Decoder(_Owned).decode


def _owner(line: bytes) -> tuple[str, bool] | None:
    """Returns the caller that a line is about, and whether the line is about a failure."""
    try:
        found = _decode_owned(line)
    except (msgspec.DecodeError, RecursionError):
        return None
    if found.outcome:
        return found.identity or found.address, found.outcome != "done"
    # The form of `caller_name`: "user (key, address)". Security: only the part in brackets is verified. A
    # client may claim any user, but without brackets; the subject of a token may have brackets and commas.
    _, bracket, verified = found.who.partition(" (")
    verified = verified.removesuffix(")") if bracket and found.who.endswith(")") else found.who
    identity, _, address = verified.rpartition(", ")
    return identity or address, found.action == "fail"


def _timed(lines: Iterable[bytes]) -> Iterator[tuple[float, bytes]]:
    """Yields the lines, newest first, with times that never increase, even if the clock was set back or an
    entry was written late. Skips lines without a time.
    """
    latest = inf
    for line in lines:
        time = _time_of(line)
        if time is not None:
            latest = min(latest, time)
            yield latest, line


def _time_of(line: bytes) -> float | None:
    head = line.partition(b",")[0]
    try:
        time = float(head.removeprefix(_TIME)) if head.startswith(_TIME) else inf
    except ValueError:
        return None
    return time if isfinite(time) else None


def _page(
    lines: Iterable[tuple[float, bytes]],
    read: Callable[[bytes], _Entry | None],
    limit: int,
    after: float,
    cursor: str,
) -> Page[_Entry]:
    """Returns the page that follows `cursor`: the time of a line, and how many of the lines with this time
    belong to earlier pages.
    """
    begin, skipped = _position(cursor)
    entries: list[_Entry] = []
    size, at, passed = 0, inf, 0
    for time, line in lines:
        if time <= after:
            break
        if time != at:
            at, passed = time, 0
        passed += 1
        if time > begin or (time == begin and passed <= skipped):
            continue
        entry = read(line)
        if entry is not None:
            entries.append(entry)
            size += len(line)
            if len(entries) == limit or size >= _PAGE_BYTES:
                return Page(entries, f"{at!r}:{passed}")
    return Page(entries)


def _position(cursor: str) -> tuple[float, int]:
    if not cursor:
        return inf, 0
    time, _, passed = cursor.partition(":")
    try:
        position = float(time), int(passed)
    except ValueError:
        position = inf, -1
    if not isfinite(position[0]) or position[1] < 0:
        raise InvalidArgument(
            f"cursor '{printable(cursor[:64])}' does not come from this server: leave it out to begin"
            " with the latest entry"
        )
    return position


def _parse(line: bytes) -> Change | Attempt | None:
    try:
        found: Mapping[str, Any] = json.loads(line)
        entry = Attempt(**found) if "outcome" in found else Change(**found)
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = ("time", "suppressed")
    valid = all(
        isinstance(value, (int, float) if name in numbers else str) for name, value in asdict(entry).items()
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


def _lines_backwards(path: Path, most: int) -> Iterator[bytes]:
    """Yields the lines in the last `most` bytes of a file in reverse order, reading block by block. Of a line
    that is too long, yields at most a fragment.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            position = file.seek(0, os.SEEK_END)
            begin = max(0, position - most)
            rest = b""
            while position > begin:
                size = min(_BLOCK, position - begin)
                position -= size
                file.seek(position)
                rest, *lines = (file.read(size) + rest).split(b"\n")
                yield from (line for line in reversed(lines) if line)
                if len(rest) > _LONGEST_LINE:
                    rest = b""
            if rest:
                yield rest
    except FileNotFoundError:
        return
    except OSError as error:
        log.error("the audit log '%s' cannot be read: %s", path, error.strerror)
