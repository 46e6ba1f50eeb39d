"""The server's log: receives every record that the program logs, and filters and formats the records
according to the settings. The latest entries stay in memory, for the console.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any, Final, Self

import msgspec

from backline.observe.log.settings import LogFormat, LogSettings, LogStyle
from backline_client.values.control import LogLine, LogValue
from backline_client.values.names import printable

#: The maximum number of entries that are kept in memory.
KEPT: Final = 500
#: The maximum number of characters of an entry. With KEPT, this limits the memory to 2 MiB for ASCII text.
LONGEST: Final = 4000
_MASK: Final = "***"
#: Matches secrets: API keys, JSON Web Tokens, credentials in HTTP fields, and user names, passwords, keys and
#: signatures in URLs. The server does not log secrets, but models and libraries may.
_SECRETS: Final = (
    r"(?i)(?P<key>\bbk_)[\w-]{8,}"
    r"|(?P<token>\beyJ)[\w-]{8,}\.[\w-]+\.[\w-]*"
    r"|(?P<field>\b(?:bearer|basic|authorization[:=])\s+)[\w.+/=~-]{8,}"
    r"|(?P<user>://)[^\s/@]+(?=@)"
    r"|(?P<query>[?&](?:X-Amz-Signature|sig|signature|token|access_token|password|key)=)[^\s&]+"
)


def masked(text: str) -> str:
    """Returns the text with everything that looks like a secret replaced by `***`."""
    return re.sub(_SECRETS, lambda found: f"{found[found.lastgroup or 0]}{_MASK}", text)


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


log = logging.getLogger("backline.observe")

#: The maximum total size, in bytes, of the lines that wait to be written; further lines are lost.
MOST_WAITING = 4 << 20
#: The time, in seconds, for which lines are collected so that they can be written together.
_GATHER = 0.002
#: The interval, in seconds, at which to check whether log rotation has moved or deleted the log file.
_LOOK = 1.0
#: Seconds between attempts to write to a terminal or pipe that is full.
_PAUSE = 0.05
#: The maximum time, in seconds, for writing the remaining lines when the server stops.
_LAST = 2.0


class LogWriter:
    """Writes lines to a file, or to stderr, on a separate thread. Raises OSError if the file cannot be
    opened.

    Lines that cannot be written are lost. `report_lost(count, reason)` returns the log line that reports how
    many lines were lost, and why.
    """

    def __init__(self, file: Path | None, report_lost: Callable[[int, str], bytes]) -> None:
        self._file = file
        self._report_lost = report_lost
        self._descriptor = _standard_error() if file is None else _open(file)
        self._lock = threading.Lock()
        #: Held while lines are written, so that they stay in order.
        self._writing = threading.Lock()
        self._waiting: list[bytes] = []
        self._size = 0
        self._lost = 0
        self._reason = ""
        self._wake = threading.Event()
        self._ending = False
        self._looked = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        self._thread.start()

    def write(self, line: bytes) -> None:
        """Queues a line. Never blocks and never raises; may be called on any thread."""
        with self._lock:
            if self._size + len(line) > MOST_WAITING:
                self._lost += 1
                self._reason = "lines came faster than they could be written"
                return
            self._size += len(line)
            self._waiting.append(line)
        self._wake.set()

    def close(self) -> None:
        """Writes the remaining lines, for at most _LAST seconds. Lines that are logged later are lost."""
        self._ending = True
        self._wake.set()
        self._thread.join(_LAST)

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait()
            if not self._ending:
                time.sleep(_GATHER)
            # The event is cleared before the lines are taken, so a line that is queued later sets it again.
            self._wake.clear()
            self.drain()
        self.drain()

    def drain(self) -> None:
        """Writes the lines that are queued. Blocks as long as the file does."""
        with self._writing:
            self._write_in_order()

    def _write_in_order(self) -> None:
        with self._lock:
            lines, self._waiting = self._waiting, []
            self._size = 0
            lost, self._lost = self._lost, 0
        if lost:
            lines.append(self._report_lost(lost, self._reason))
        if not lines:
            return
        self._look()
        try:
            self._put(b"".join(lines))
        except OSError as error:
            with self._lock:
                self._lost += len(lines) + lost - bool(lost)
                self._reason = error.strerror or str(error)

    def _put(self, data: bytes) -> None:
        if self._descriptor is None:
            return
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except BlockingIOError:  # another program has made the terminal or pipe non-blocking
                time.sleep(_PAUSE)

    def _look(self) -> None:
        """Reopens the log file if log rotation has moved or deleted it."""
        now = time.monotonic()
        if self._file is None or now < self._looked + _LOOK:
            return
        self._looked = now
        assert self._descriptor is not None
        try:
            if not self._file.exists() or not os.path.samestat(self._file.stat(), os.fstat(self._descriptor)):
                before, self._descriptor = self._descriptor, _open(self._file)
                os.close(before)
        except OSError:
            pass  # the old file remains in use


def _open(file: Path) -> int:
    return os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


def _standard_error() -> int | None:
    """Returns the file descriptor of stderr, or None if stderr was closed when the program started. In that
    case the descriptor may belong to another file now.
    """
    return None if sys.__stderr__ is None else sys.__stderr__.fileno()


#: The logger of the lines about requests.
REQUESTS = "backline.requests"
#: The loggers whose DEBUG records are shown from verbose level 1 on. Those of other loggers are shown from
#: level 2 on.
_VERBOSE = (REQUESTS, "backline.model")


class ServerLog(logging.Handler):
    """A handler that gets all log records of the program while the handler is installed. Raises OSError if
    the log file cannot be opened.

    A record is formatted on the thread that logs it, and written on another thread.
    """

    def __init__(self, settings: LogSettings) -> None:
        # When the program ends, the module logging closes every handler that it has initialised. So a handler
        # without a writer must not reach super().__init__().
        self._writer = LogWriter(Path(settings.file) if settings.file else None, self._lost)
        super().__init__()
        self._settings = settings
        self._listeners: list[Callable[[LogSettings], None]] = []
        self._recent = RecentLines()

    @contextmanager
    def installed(self) -> Iterator[Self]:
        """Makes this handler the program's log for the duration of a `with` block. The remaining lines are
        written at the end of the block.
        """
        root = logging.getLogger()
        before = root.level
        root.addHandler(self)
        self._apply()
        try:
            yield self
        finally:
            root.removeHandler(self)
            root.setLevel(before)
            for name in _VERBOSE:
                logging.getLogger(name).setLevel(logging.NOTSET)
            self.close()

    def settings(self) -> Mapping[str, LogValue]:
        """Returns the settings, with Triton's names; see LogControl."""
        return self._settings.shown()

    def update(self, changes: Mapping[str, object]) -> None:
        """Changes settings, and logs that they have changed; see LogControl."""
        before = self._settings
        self._settings = before.changed(changes)
        self._apply()
        if self._settings != before:
            log.info(
                "log settings changed by request: %s",
                ", ".join(f"{name} {value}" for name, value in changes.items()),
            )

    def recent(self, after: int = 0) -> Sequence[LogLine]:
        """Returns the latest entries; see LogControl."""
        return self._recent.after(after)

    def watch(self, listener: Callable[[LogSettings], None]) -> None:
        """Calls `listener` with the settings immediately, and again after every change."""
        self._listeners.append(listener)
        listener(self._settings)

    def _apply(self) -> None:
        settings = self._settings
        self.setFormatter(formatter(settings.format, settings.style))
        if settings.verbose_level >= 2:
            level = logging.DEBUG
        else:
            level = logging.INFO if settings.info else logging.WARNING if settings.warning else logging.ERROR
        logging.getLogger().setLevel(level)
        for name in _VERBOSE:
            logging.getLogger(name).setLevel(logging.DEBUG if settings.verbose_level else logging.NOTSET)
        for listener in self._listeners:
            listener(settings)

    def filter(self, record: logging.LogRecord) -> bool:
        """Returns whether to log a record. Records below the level of their logger do not reach this
        method.
        """
        settings, level = self._settings, record.levelno
        if level < logging.INFO:
            return settings.verbose_level > (0 if record.name in _VERBOSE else 1)
        if level < logging.WARNING:
            # watchfiles reports each change to a watched folder.
            return settings.info and (settings.verbose_level > 1 or record.name != "watchfiles.main")
        return settings.warning if level < logging.ERROR else settings.error

    def emit(self, record: logging.LogRecord) -> None:
        text = self._text(record)
        self._recent.add(record, text)
        self._writer.write(_encoded(text))

    def _text(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # the caller's mistake, such as wrong arguments
            return f"cannot format a record of {record.name}, {record.msg!r}: {error}"

    def _lost(self, count: int, reason: str) -> bytes:
        text = f"{count} log lines were lost: {reason}"
        record = logging.LogRecord(log.name, logging.WARNING, __file__, 0, text, None, None)
        return _encoded(self._text(record))

    def drain(self) -> None:
        """Writes the lines so far. Blocks as long as the file does."""
        self._writer.drain()

    def close(self) -> None:
        """Writes the remaining lines."""
        self._writer.close()
        super().close()


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace") + b"\n"


_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_encode = msgspec.json.Encoder(enc_hook=str).encode


def formatter(kind: LogFormat, style: LogStyle = "backline") -> logging.Formatter:
    if kind == "json":
        return JsonFormatter()
    if style == "triton":
        return TritonFormatter(iso=kind == "ISO8601")
    return IsoFormatter(_TEXT) if kind == "ISO8601" else TextFormatter(_TEXT)


class TextFormatter(logging.Formatter):
    """Formats a record as one line, followed by the lines of the traceback, if there is one. Control
    characters in messages are escaped, because a message may contain text from clients, who could otherwise
    forge lines or control the terminal that shows the log.

    If a record has the attribute `multiline`, its message is a traceback from a worker process, whose line
    breaks are kept. The lines of every traceback are indented, so that none of them looks like a record: the
    text of an exception may also come from a client.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        lines = record.message.split("\n") if getattr(record, "multiline", False) else [record.message]
        first, *others = map(printable, lines)
        record.message = first
        return "\n  ".join([super().formatMessage(record), *others])

    def formatException(self, ei: Any) -> str:
        return "\n".join(f"  {printable(line)}" for line in super().formatException(ei).split("\n"))


class IsoFormatter(TextFormatter):
    """A TextFormatter that writes the time in ISO 8601 format, in UTC, to the millisecond."""

    converter = staticmethod(time.gmtime)
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"


class TritonFormatter(TextFormatter):
    """Formats records as Triton does: `I1126 12:00:00.000000 4242 journal.py:99] "message"`, in local time.

    With `iso`, a line begins with the time in UTC to the millisecond, followed by the severity. If a record
    has the attribute `table`, the text of the table is written unchanged in place of the message.
    """

    def __init__(self, *, iso: bool) -> None:
        super().__init__()
        self._iso = iso

    def formatMessage(self, record: logging.LogRecord) -> str:
        severity = "E" if record.levelno > logging.ERROR else record.levelname[0].replace("D", "I")
        if self._iso:
            when = f"{_ISO.formatTime(record)} {severity}"
        else:
            local = time.localtime(record.created)
            micros = int(record.created % 1 * 1e6)
            when = f"{severity}{time.strftime('%m%d %H:%M:%S', local)}.{micros:06d}"
        head = f"{when} {record.process} {record.filename}:{record.lineno}]"
        table = getattr(record, "table", None)
        if table is not None:
            return f"{head} \n{table}"
        text = printable(record.message.replace("\\", "\\\\").replace('"', '\\"'))
        return f'{head} "{text}"'


class JsonFormatter(logging.Formatter):
    """Formats a record as a JSON object in one line, with the keys `time`, `level`, `logger` and `message`,
    and if present `exception` and the keys of the record's `fields`.
    """

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
            text = _encode(document).decode()
        except UnicodeEncodeError:  # an unpaired surrogate, which a client may send in an id
            text = _encode({name: _encodable(value) for name, value in document.items()}).decode()
        # JSON escapes only the control characters of ASCII, but terminals also obey the control characters of
        # Latin-1.
        return text if text.isprintable() else text.translate(_ESCAPES)


_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F))}


def _encodable(value: Any) -> Any:
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


_ISO = IsoFormatter()
