"""Which environments may go."""

from __future__ import annotations

from collections.abc import Iterable

from backline.workers.environments.store import Entry


def unused(entries: Iterable[Entry], *, now: float, seconds: float | None) -> list[Entry]:
    """Those that no model asks for any more, or with `seconds` also those that were not used for so long; never one that a server has."""
    return [
        entry
        for entry in entries
        if not entry.in_use
        and (not entry.users or (seconds is not None and now - entry.last_used >= seconds))
    ]
