"""What a repository held when it could last be reached, on disk for a start without it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

import msgspec

from backline.repository.listing import FileEntry
from backline.repository.remote.cache import ContentCache

log = logging.getLogger("backline.repository")


class _Remembered(msgspec.Struct, frozen=True):
    """`seen` is in seconds since 1970, `files` are (size, identity, problem) by path, `source` is the identity of their archive."""

    location: str
    seen: float
    files: dict[str, tuple[int, str, str]]
    source: str = ""


def remember(cache: ContentCache, location: str, files: Mapping[str, FileEntry], source: str = "") -> None:
    plain = {path: (entry.size, entry.identity, entry.problem) for path, entry in files.items()}
    cache.write_listing(
        _key(location, source), msgspec.json.encode(_Remembered(location, time.time(), plain, source))
    )


def recall(cache: ContentCache, location: str, source: str = "") -> tuple[dict[str, FileEntry], float] | None:
    """The files, and when they were seen; None where nothing usable is remembered."""
    try:
        found = msgspec.json.decode(cache.read_listing(_key(location, source)), type=_Remembered)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        log.warning(
            "What was remembered of '%s' in '%s' cannot be read, and is not used: %s",
            location,
            cache.folder,
            error,
        )
        return None
    if (found.location, found.source) != (location, source):
        return None
    return {path: FileEntry(*plain) for path, plain in found.files.items()}, found.seen


def _key(location: str, source: str) -> str:
    return f"{location}\0{source}" if source else location
