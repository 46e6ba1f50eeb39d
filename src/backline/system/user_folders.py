"""The user's default folders."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache() -> Path:
    """The folder where remote files and environments are cached."""
    try:
        return platformdirs.user_cache_path("backline")
    except RuntimeError:  # without HOME and a passwd entry, use / as the home, as container runtimes do
        return Path("/.cache/backline")


def user_config() -> Path:
    """The folder of the user's own files for the command line and the client, such as keys of servers."""
    try:
        return platformdirs.user_config_path("backline")
    except RuntimeError:
        return Path("/.config/backline")


def user_state() -> Path:
    """The folder in which each server has a state folder, for what requests change, such as labels."""
    try:
        return platformdirs.user_state_path("backline")
    except RuntimeError:
        return Path("/.local/state/backline")
