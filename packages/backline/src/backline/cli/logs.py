"""`backline logs`: shows the log file of a server on this machine, filtered by severity and model."""

from __future__ import annotations

import json
import os
import re
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import click

from backline.cli.command import run
from backline.cli.connection import connection_options
from backline.cli.numbers import WholeNumber
from backline.observe.log.settings import LEVELS
from backline_client.client.aio import AsyncClient
from backline_client.client.http_transport import HttpTransport
from backline_client.client.options import ClientOptions
from backline_client.values.errors import InvalidArgument
from backline_client.values.names import printable

#: Seconds between checks for new lines.
_INTERVAL = 0.2
#: The start of an entry in the formats default and ISO8601: time, severity, logger.
_START = re.compile(r"[0-9]{4}-\S+(?: \S+)? (DEBUG|INFO|WARNING|ERROR|CRITICAL) [\w.]+: ")
#: The start of an entry in the formats triton (severity, local time) and triton-ISO8601 (UTC, severity), with
#: the process and the line of code.
_TRITON_START = re.compile(
    r"(?:([IWE])[0-9]{4} [0-9:]{8}\.[0-9]{6}|[0-9]{4}-[0-9-]{5}T[0-9:.]+Z ([IWE])) [0-9]+ [^\]]+:[0-9]+\] "
)
_TRITON_LEVELS = {"I": "info", "W": "warning", "E": "error"}
_COLOURS = {"warning": "yellow", "error": "red", "critical": "red", "debug": "bright_black"}
_EPILOG = """\b
Examples:
  backline logs
  backline logs --follow --level warning
  backline logs --model tagger --lines 200
  backline logs --file /var/log/backline.log

Asks the server for its log file, which must be on this machine. A server without --log-file logs to stderr:
`docker logs`, `kubectl logs` or `journalctl` show that."""


@dataclass(frozen=True, slots=True)
class LogEntry:
    """An entry of a log, including the lines of its traceback. `level` is the severity in lower case; empty
    if the severity is unknown.
    """

    level: str
    text: str

    def concerns(self, level: str, model: str) -> bool:
        """Returns whether the entry has at least the severity `level` and names `model`. An empty argument
        matches every entry, and an entry of unknown severity matches every `level`.
        """
        severities = (*LEVELS, "critical")
        severe = not level or self.level not in severities
        severe = severe or severities.index(self.level) >= severities.index(level)
        # Only whole names match: add1 matches neither add10 nor my-add1.
        named = not model or re.search(rf"(?<![\w.-]){re.escape(model)}(?![\w-]|\.\w)", self.text)
        return severe and bool(named)


@click.command(epilog=_EPILOG)
@click.option("--follow", "-f", is_flag=True, help="Keep running, and show new entries.")
@click.option(
    "--lines",
    "-n",
    type=WholeNumber(0),
    default=50,
    show_default=True,
    help="How many past entries to show.",
)
@click.option("--level", type=click.Choice(LEVELS), default="debug", help="The lowest severity to show.")
@click.option("--model", default="", metavar="NAME", help="Only entries that name this model.")
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The log file, instead of asking the server for it.",
)
@connection_options
def command(
    url: str, options: ClientOptions, follow: bool, lines: int, level: str, model: str, file: Path | None
) -> None:
    """Show the log of a server on this machine. A traceback is shown or left out as a whole."""
    path = file or _found(run(_log_file(url, options)), url)
    with path.open(encoding="utf-8", errors="replace") as opened:
        shown = (entry for entry in entries(opened) if entry.concerns(level, model))
        for entry in deque(shown, maxlen=lines):
            _print(entry)
        if follow:
            for entry in entries(_new_lines(path, opened)):
                if entry.concerns(level, model):
                    _print(entry)


async def _log_file(url: str, options: ClientOptions) -> Path:
    """Returns the path of a server's log file. Raises InvalidArgument if the server does not log to a file,
    or `url` is not an HTTP URL.
    """
    async with AsyncClient(url, options) as client:
        transport = await client.transport()
        if not isinstance(transport, HttpTransport):
            raise InvalidArgument(
                f"the log can only be read over HTTP: use http://HOST:PORT instead of {url}"
            )
        settings = await transport.json(b"/v2/logging", options.timeout)
    name = str(settings.get("log_file", ""))
    if not name:
        raise InvalidArgument(
            f"{url} logs to stderr: read the server's output (docker logs, kubectl logs, journalctl), or"
            " start the server with --log-file"
        )
    return Path(name)


def _found(path: Path, url: str) -> Path:
    """Returns `path`, the log file of a server. Raises InvalidArgument if it is not on this machine."""
    if not path.is_file():
        raise InvalidArgument(
            f"the log file of {url}, '{path}', does not exist here: run this command on the server's machine,"
            " in the folder that the server was started in, or pass --file"
        )
    return path


def entries(lines: Iterable[str]) -> Iterator[LogEntry]:
    """Groups the lines of a log, in any format of --log-format, into entries. An empty string in `lines` ends
    the current entry.
    """
    level, text = "", ""
    for line in lines:
        found = _level(line)
        if (found is not None or not line) and text:
            yield LogEntry(level, text)
            text = ""
        if found is not None:
            level = found
        if line:
            text += line if line.endswith("\n") else f"{line}\n"
    if text:
        yield LogEntry(level, text)


def _level(line: str) -> str | None:
    """Returns the severity of the entry that starts with this line; None if the line continues an entry."""
    if found := _START.match(line):
        return found[1].lower()
    if found := _TRITON_START.match(line):
        return _TRITON_LEVELS[found[1] or found[2]]
    if line.startswith("{"):
        try:
            document = json.loads(line)
        except ValueError:
            return None
        return str(document["level"]) if isinstance(document, dict) and "level" in document else None
    return None


def _new_lines(path: Path, opened: TextIO) -> Iterator[str]:
    """Yields lines as they are written. If the log file is moved, continues with the new file at `path`.
    Yields "" each time before waiting for further lines.
    """
    kept = ""
    while True:
        line = opened.readline()
        kept += line
        if kept.endswith("\n"):
            yield kept
            kept = ""
        if line:
            continue
        yield ""
        if _is_moved(path, opened):
            yield from opened  # lines that were written since the last check
            opened.close()
            opened = path.open(encoding="utf-8", errors="replace")
        else:
            time.sleep(_INTERVAL)


def _is_moved(path: Path, opened: TextIO) -> bool:
    try:
        return os.stat(path).st_ino != os.fstat(opened.fileno()).st_ino
    except OSError:  # the file was moved, and the server has not opened the new one yet
        return False


def _print(entry: LogEntry) -> None:
    text = "\n".join(map(printable, entry.text.rstrip("\n").split("\n")))
    click.secho(text, fg=_COLOURS.get(entry.level))
