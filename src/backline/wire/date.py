"""The date field, formatted once a second."""

from __future__ import annotations

import time

#: In English wherever the server runs, which time.strftime is not.
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_formatted = (0, b"")


def http_date() -> bytes:
    """RFC 9110, section 5.6.7."""
    global _formatted  # noqa: PLW0603
    now = int(time.time())
    if _formatted[0] != now:
        year, month, day, hour, minute, second, weekday = time.gmtime(now)[:7]
        text = (
            f"{_DAYS[weekday]}, {day:02} {_MONTHS[month - 1]} {year:04} {hour:02}:{minute:02}:{second:02} GMT"
        )
        _formatted = (now, text.encode())
    return _formatted[1]
