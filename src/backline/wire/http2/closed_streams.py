"""What a connection remembers of streams that are gone."""

from __future__ import annotations

_REMEMBERED = 512


class ClosedStreams:
    """Which streams were reset, and which numbers a client left out. Others below the highest number ended in the ordinary way.

    Frames on a stream that we reset may have been on their way: they are dropped. Frames on a stream that the client reset or ended are its
    mistake (RFC 9113, section 5.1).
    """

    def __init__(self) -> None:
        self._resets: dict[int, bool] = {}
        self._skipped: list[range] = []

    def reset(self, number: int, by_client: bool) -> None:
        resets = self._resets
        if len(resets) >= _REMEMBERED:
            del resets[next(iter(resets))]
        resets[number] = by_client

    def was_reset(self, number: int) -> bool:
        return number in self._resets

    def by_client(self, number: int) -> bool:
        return self._resets.get(number, False)

    def skip(self, numbers: range) -> None:
        self._skipped.append(numbers)
        del self._skipped[:-_REMEMBERED]

    def was_skipped(self, number: int) -> bool:
        return any(number in numbers for numbers in self._skipped)
