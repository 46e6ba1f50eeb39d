"""The default folders of the current user."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def user_cache() -> Path:
    """Returns the folder where remote files and environments are cached."""
    try:
        return platformdirs.user_cache_path("backline")
    except RuntimeError:  # without HOME or a passwd entry, use / as the home, as container runtimes do
        return Path("/.cache/backline")


def user_config() -> Path:
    """Returns the folder of the user's files for the command line and the client, such as the keys of
    servers.
    """
    try:
        return platformdirs.user_config_path("backline")
    except RuntimeError:
        return Path("/.config/backline")


def user_state() -> Path:
    """Returns the folder that contains a state folder for each server, with what requests have changed, such
    as labels.
    """
    try:
        return platformdirs.user_state_path("backline")
    except RuntimeError:
        return Path("/.local/state/backline")
