"""Who changes a server's models, for its audit log."""

from __future__ import annotations

import getpass
import os
import socket
from functools import cache

#: The header field (in gRPC: the metadata) that names the person.
USER_HEADER = "x-backline-user"


@cache
def user_name() -> str:
    """user@host, in ASCII; the number of the user where it has no name, as in many containers."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = f"uid{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    return "".join(
        character if "!" <= character <= "~" else "_" for character in f"{user}@{socket.gethostname()}"
    )
