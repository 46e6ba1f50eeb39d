"""Decides when files are complete that another program may still be writing, such as those of a copy in
progress.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: The minimum time, in seconds, for which a file must have been unchanged.
AT_REST = 1.0
#: A file must have been unchanged for this many times the longest pause between its changes so far.
_PAUSES = 3.0
#: The maximum time, in seconds, for which a file must have been unchanged. A longer pause ends a copy.
LONGEST_REST = 15.0


@dataclass(frozen=True, slots=True)
class Seen:
    """A file when it was last checked: its path, what identifies its content, and the seconds since it was
    written.
    """

    path: str
    identity: str
    age: float


@dataclass(slots=True)
class _Growth:
    identity: str
    changed_at: float
    #: The longest pause, in seconds, between two changes to a file whose copy may still be in progress.
    pause: float = 0.0

    def complete_at(self) -> float:
        return self.changed_at + min(max(AT_REST, self.pause * _PAUSES), LONGEST_REST)


class FilesAtRest:
    """Remembers how files grow, because a copy that pauses looks like one that has ended.

    The slower a file has grown so far, the longer it must be unchanged. All times are in seconds of one
    clock.
    """

    def __init__(self) -> None:
        self._growing: dict[str, _Growth] = {}

    def wait(self, files: Iterable[Seen], now: float) -> float:
        """Returns the number of seconds until all files are complete, provided that none of them changes; 0
        if they are complete now.
        """
        self._growing = {
            path: growth for path, growth in self._growing.items() if now - growth.changed_at <= LONGEST_REST
        }
        complete_at = now
        for file in files:
            # The age is negative if another machine, whose clock is ahead, wrote the file.
            changed_at = now - max(file.age, 0.0)
            growth = self._growing.get(file.path)
            if growth is None:
                growth = _Growth(file.identity, changed_at)
            elif growth.identity != file.identity:
                pause = max(growth.pause, changed_at - growth.changed_at)
                growth = _Growth(file.identity, changed_at, pause)
            if now - growth.changed_at <= LONGEST_REST:
                self._growing[file.path] = growth
                complete_at = max(complete_at, growth.complete_at())
        return complete_at - now
