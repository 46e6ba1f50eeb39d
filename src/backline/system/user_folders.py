"""The user's folders, for what nobody has named a place for."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache() -> Path:
    """Where remote files and environments are kept."""
    try:
        return platformdirs.user_cache_path("backline")
    except (
        RuntimeError
    ):  # neither HOME nor an entry among the users: as container runtimes do, the root is taken for the home
        return Path("/.cache/backline")


def user_state() -> Path:
    """Where servers keep what was decided by request, each in a folder of its own."""
    try:
        return platformdirs.user_state_path("backline")
    except RuntimeError:
        return Path("/.local/state/backline")
