"""Keeps the latest entries of the log in memory, for the console."""

from __future__ import annotations

import logging
import re
from collections import deque
from itertools import takewhile
from threading import Lock
from typing import Final

from backline.engine.control import LogLine

#: The maximum number of entries that are kept, and of characters in each: at most 2 MiB of ASCII text.
KEPT: Final = 500
LONGEST: Final = 4000
_MASK: Final = "***"
#: Matches secrets. The server logs none, but models and libraries may: API keys, JSON Web Tokens, HTTP fields
#: with credentials, and user information and signatures in URLs.
_SECRETS: Final = re.compile(
    r"(?P<key>\bbk_)[\w-]{8,}"
    r"|(?P<token>\beyJ)[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?P<field>\b(?:bearer|basic|authorization[:=])\s+)[\w.+/=~-]{8,}"
    r"|(?P<user>://)[^\s/@]+(?=@)"
    r"|(?P<query>[?&](?:X-Amz-Signature|sig|signature|token|access_token|password|key)=)[^\s&]+",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Returns the text with everything that looks like a secret replaced by `***`."""
    return _SECRETS.sub(lambda found: f"{found[found.lastgroup or 0]}{_MASK}", text)


class RecentLines:
    """The latest entries of the log. `add` may be called on any thread."""

    def __init__(self) -> None:
        self._lines: deque[LogLine] = deque(maxlen=KEPT)
        self._lock = Lock()
        self._number = 0

    def add(self, record: logging.LogRecord, text: str) -> None:
        """Stores an entry. `text` is the line as it is written to the log."""
        if len(text) > LONGEST:
            text = f"{text[:LONGEST]}..."
        with self._lock:
            self._number += 1
            self._lines.append(
                LogLine(self._number, record.created, record.levelname.lower(), record.name, text)
            )

    def after(self, number: int) -> list[LogLine]:
        """Returns the entries with numbers above `number`, oldest first, with secrets masked."""
        with self._lock:
            found = [*takewhile(lambda line: line.number > number, reversed(self._lines))]
        return [
            LogLine(line.number, line.time, line.level, line.logger, masked(line.text))
            for line in reversed(found)
        ]
