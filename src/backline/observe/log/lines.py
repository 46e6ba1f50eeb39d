"""How lines of the log look: text for people, JSON for collectors."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import msgspec

from backline.observe.log.settings import LogFormat

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_encode = msgspec.json.Encoder(enc_hook=str).encode


def formatter(kind: LogFormat) -> logging.Formatter:
    """What makes a line, or several with a traceback, of a record."""
    if kind == "json":
        return JsonFormatter()
    return IsoFormatter(_TEXT) if kind == "ISO8601" else logging.Formatter(_TEXT)


class IsoFormatter(logging.Formatter):
    """With times as ISO 8601 has them, UTC, to the millisecond."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class JsonFormatter(logging.Formatter):
    """A JSON object a line: `time`, `level`, `logger`, `message`, `exception` where there is one, and the record's own `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, Any] = {
            "time": _ISO.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        fields = getattr(record, "fields", None)
        if isinstance(fields, Mapping):
            document |= fields
        try:
            return _encode(document).decode()
        except UnicodeEncodeError:  # half of a surrogate pair, which a client may send as an id
            return _encode({name: _encodable(value) for name, value in document.items()}).decode()


def _encodable(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


_ISO = IsoFormatter()
