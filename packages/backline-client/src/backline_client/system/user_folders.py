"""The default folders of the current user."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_NAME = "backline"


def user_cache() -> Path:
    """Returns the folder where remote files and environments are cached."""
    return _folder("cache", "XDG_CACHE_HOME", ".cache")


def user_config() -> Path:
    """Returns the folder of the user's files for the command line and the client, such as the keys of
    servers.
    """
    return _folder("config", "XDG_CONFIG_HOME", ".config")


def user_state() -> Path:
    """Returns the folder that contains the default state folders, one for each set of repositories. State
    folders hold data that must outlive a server, such as labels and measurements.
    """
    return _folder("state", "XDG_STATE_HOME", ".local/state")


def _folder(kind: str, variable: str, default: str) -> Path:
    """Returns the user's folder for files of a `kind`, as platformdirs does.

    On Linux, this is the folder that `variable` names, or else the folder `default` in the user's home (XDG
    Base Directory Specification). platformdirs is not imported there, because the modules that it imports
    take 5 ms of a server's start.
    """
    if sys.platform != "linux":
        import platformdirs

        try:
            found: Path = getattr(platformdirs, f"user_{kind}_path")(_NAME)
        except RuntimeError:
            return Path("/", default, _NAME)
        return found
    given = os.environ.get(variable, "")
    return Path(given if os.path.isabs(given) else os.path.join(_home(), default), _NAME)


def _home() -> str:
    """Returns the home folder of the user; "/", as container runtimes do, if the user has none.

    A relative path in HOME is ignored.
    """
    home = os.environ.get("HOME", "")
    if os.path.isabs(home):
        return home
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return "/"
