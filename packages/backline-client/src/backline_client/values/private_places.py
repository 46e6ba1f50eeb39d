"""Hides the paths of the server's folders from clients.

Messages contain the full paths of files, because operators need the paths in the log and the terminal. Every
message that a dialect sends to a client passes through `for_clients`. All engines of a process share the list
of folders.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Final


class _KnownPlaces:
    """The private folders of this process, and the texts that clients see in place of their paths."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}

    def add(self, folder: Path, shown: str) -> None:
        for path in {os.path.abspath(folder), os.path.realpath(folder)} - {os.sep}:
            self._shown[path] = shown

    def hide(self, text: str) -> str:
        if not self._shown or os.sep not in text:
            return text
        return _pattern(tuple(self._shown)).sub(lambda found: self._shown[found[0]], text)


@lru_cache(maxsize=1)
def _pattern(paths: tuple[str, ...]) -> re.Pattern[str]:
    """Returns a pattern that matches the paths."""
    # Longer paths come first, so that a nested folder is recognised before the folder that contains it.
    longest_first = sorted(paths, key=len, reverse=True)
    # The pattern matches only whole segments: /models does not match in /v2/models or /models-old.
    return re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w.-])")


_places: Final = _KnownPlaces()


def keep_private(folder: Path, shown: str) -> None:
    """Replaces the path of `folder` with `shown` in messages to clients."""
    _places.add(folder, shown)


def for_clients(text: str) -> str:
    """Shortens the private paths in a message; for example, '/srv/models/add1/1/model.onnx' becomes
    'models/add1/1/model.onnx'.
    """
    return _places.hide(text)
