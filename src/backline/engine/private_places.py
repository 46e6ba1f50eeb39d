"""Folders of the server whose paths are hidden from clients.

Messages name files by their full path for the log and the terminal, where operators need it. Everything that
a dialect sends passes through `for_clients`. The folders apply to the whole process, whichever engine uses
them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final


class _KnownPlaces:
    """Private folders and their replacements."""

    def __init__(self) -> None:
        self._shown: dict[str, str] = {}
        self._pattern: re.Pattern[str] | None = None

    def add(self, folder: Path, shown: str) -> None:
        for path in {os.path.abspath(folder), os.path.realpath(folder)} - {os.sep}:
            self._shown[path] = shown
        if not self._shown:
            return
        longest_first = sorted(self._shown, key=len, reverse=True)
        # Matches whole segments only: /models is neither part of /v2/models nor of /models-old.
        self._pattern = re.compile(rf"(?<![\w.-])(?:{'|'.join(map(re.escape, longest_first))})(?![\w.-])")

    def hide(self, text: str) -> str:
        if self._pattern is None or os.sep not in text:
            return text
        return self._pattern.sub(lambda found: self._shown[found[0]], text)


_places: Final = _KnownPlaces()


def keep_private(folder: Path, shown: str) -> None:
    """Shows clients `shown` in place of the path of `folder`."""
    _places.add(folder, shown)


def for_clients(text: str) -> str:
    """The message with private paths replaced, for example by 'models/add1/1/model.onnx'."""
    return _places.hide(text)
