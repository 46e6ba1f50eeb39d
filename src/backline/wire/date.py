"""The date field, formatted once a second."""

from __future__ import annotations

import time
from email.utils import formatdate

_formatted = (0, b"")


def http_date() -> bytes:
    """RFC 9110, section 5.6.7."""
    global _formatted  # noqa: PLW0603
    now = int(time.time())
    if _formatted[0] != now:
        _formatted = (now, formatdate(now, usegmt=True).encode())
    return _formatted[1]
