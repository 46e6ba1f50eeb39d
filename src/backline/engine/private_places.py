"""Folders of the server's machine whose paths clients do not get to see.

Messages name files by their whole path, as whoever runs the server needs it, and go to the log and the terminal like that. What a dialect
sends passes `for_clients`. The folders are those of the process, whichever engine uses them: a path belongs to the machine.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final


class _KnownPlaces:
    """Folders, and what stands for them."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, folder: Path, shown: str) -> None:
        for path in {os.path.abspath(folder), os.path.realpath(folder)} - {os.sep}:
            self._shown[path] = shown
        if not self._shown:
            return
        longest_first = sorted(self._shown, key=len, reverse=True)
        # A path begins and ends where a segment does: /models is no part of /v2/models, nor of /models-old.
        self._pattern = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w.-])")

    def hide(self, text: str) -> str:
        if self._pattern is None or os.sep not in text:
            return text
        return self._pattern.sub(lambda found: self._shown[found[0]], text)


_places: Final = _KnownPlaces()


def keep_private(folder: Path, shown: str) -> None:
    """From now on clients see `shown` in place of the path of `folder`."""
    _places.add(folder, shown)


def for_clients(text: str) -> str:
    """A message without the paths of private folders: 'models/add1/1/model.onnx'."""
    return _places.hide(text)
