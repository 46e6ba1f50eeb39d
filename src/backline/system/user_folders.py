"""The user's default folders."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache() -> Path:
    """Where remote files and environments are cached."""
    try:
        return platformdirs.user_cache_path("backline")
    except RuntimeError:  # no HOME and no passwd entry: as in container runtimes, / is the home
        return Path("/.cache/backline")


def user_state() -> Path:
    """Where servers keep state changed by requests, one folder each."""
    try:
        return platformdirs.user_state_path("backline")
    except RuntimeError:
        return Path("/.local/state/backline")
