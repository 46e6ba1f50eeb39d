"""Keeps the last entries of the log in memory, for people who read it in the console."""

from __future__ import annotations

import logging
import re
from collections import deque
from itertools import takewhile
from threading import Lock
from typing import Final

from backline.engine.control import LogLine

#: The most entries that are kept, and the most characters of each: 2 MiB at most, if all are ASCII.
KEPT: Final = 500
LONGEST: Final = 4000
_MASK: Final = "***"
#: The server logs no secrets, but models and libraries may: API keys, JSON Web Tokens, the fields of HTTP
#: that carry credentials, and the user information and signatures of URLs.
_SECRETS: Final = re.compile(
    r"(?P<key>\bbk_)[\w-]{8,}"
    r"|(?P<token>\beyJ)[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?P<field>\b(?:bearer|basic|authorization[:=])\s+)[\w.+/=~-]{8,}"
    r"|(?P<user>://)[^\s/@]+(?=@)"
    r"|(?P<query>[?&](?:X-Amz-Signature|sig|signature|token|access_token|password|key)=)[^\s&]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """The text with `***` in place of what looks like a secret."""
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}{_MASK}", text)


class RecentLines:
    """The last entries. `add` may be called on any thread."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=KEPT)
        self._lock = Lock()
        self._number = 0

    def add(self, record: logging.LogRecord, text: str) -> None:
        """Keeps an entry; `text` is the line as it is written."""
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}..."
        with self._lock:
            self._number += 1
            self._lines.append(
                LogLine(self._number, record.created, record.levelname.lower(), record.name, text)
            )

    def after(self, number: int) -> list[LogLine]:
        """The entries with higher numbers, oldest first, with secrets masked."""
        with self._lock:
            found = [*takewhile(lambda line: line.number > number, reversed(self._lines))]
        return [
            LogLine(line.number, line.time, line.level, line.logger, masked(line.text))
            for line in reversed(found)
        ]
