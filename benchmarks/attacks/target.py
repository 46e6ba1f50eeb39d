"""The server under attack, and how an honest client reaches it."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Target:
    """A server on the loopback interface. Honest clients send the `key`, if there is one; attackers do not.

    `certificate` is the server's own, in PEM, if the server speaks TLS.
    """

    port: int
    pid: int
    host: str = "127.0.0.1"
    key: str = ""
    certificate: Path | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    @property
    def key_field(self) -> tuple[str, ...]:
        """The header field with the key, for HTTP/1.1."""
        return (f"Authorization: Bearer {self.key}",) if self.key else ()

    def tls(self) -> ssl.SSLContext | None:
        return None if self.certificate is None else ssl.create_default_context(cafile=self.certificate)

    def connect(self, timeout: float | None = None) -> socket.socket:
        """Returns a connection, after the TLS handshake."""
        connection = socket.create_connection(self.address, timeout)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = self.tls()
        return connection if context is None else context.wrap_socket(connection, server_hostname=self.host)
