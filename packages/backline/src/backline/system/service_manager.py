"""Implements systemd's protocols for services: uses sockets that systemd opens, and reports the state of the
service.

See sd_listen_fds(3) and sd_notify(3). Other service managers use the same environment variables.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping
from contextlib import suppress

from msgspec import Struct

#: The file descriptor of the first passed socket.
_FIRST = 3


class PassedSocket(Struct, frozen=True):
    """A listening socket that the service manager has opened, and the name of the socket in the unit file."""

    listening: socket.socket
    name: str

    @property
    def host(self) -> str:
        """The IP address; empty for a Unix socket."""
        return "" if self.listening.family == socket.AF_UNIX else str(self.listening.getsockname()[0])


def passed_sockets(environment: MutableMapping[str, str] = os.environ) -> list[PassedSocket]:
    """Returns the sockets that the service manager has passed to this process; an empty list if it has passed
    none.

    Removes the variables from the environment, so that worker processes do not mistake the sockets for their
    own. Raises OSError for a descriptor that is not a listening socket.
    """
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()) or not count.isdigit():
        return []
    given = names.split(":") if names else []
    found = []
    for index in range(int(count)):
        listening = socket.socket(fileno=_FIRST + index)
        if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise OSError(f"descriptor {_FIRST + index} of the service manager is not a listening socket")
        listening.set_inheritable(False)
        found.append(PassedSocket(listening, given[index] if index < len(given) else ""))
    return found


def is_managed() -> bool:
    """Returns whether a service manager started this process and wants to be notified of its state."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


def notify(state: str) -> None:
    """Reports a state, such as "READY=1", to the service manager; does nothing without a service manager."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # in Linux's abstract namespace
        address = "\0" + address[1:]
    # Errors are ignored, and the socket does not block, because the server must run even if the service
    # manager does not.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.setblocking(False)
        connection.sendto(state.encode(), address)
