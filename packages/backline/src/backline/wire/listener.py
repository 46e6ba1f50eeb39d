"""The sockets on which a server listens (TCP or Unix, plain or TLS), and the connections that they accept."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import stat
from collections import Counter, deque
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic
from typing import cast

from backline.wire.connection import Connection, Wire
from backline.wire.http1.head import refresh_date
from backline.wire.peers import address_of
from backline.wire.sniffer import Sniffer
from backline.wire.tls import LiveTls, TlsFiles

logger = logging.getLogger(__name__)

#: Seconds between checks of the time limits of all connections.
SWEEP_INTERVAL = 1.0
#: Seconds between checks if header_timeout, progress_timeout or idle_timeout is below SHORT_LIMIT seconds.
SHORT_SWEEP_INTERVAL = 0.25
SHORT_LIMIT = 4.0
#: The number of connections checked per iteration of the event loop.
SWEEP_SLICE = 256
#: Seconds between checks for remaining connections while the server stops.
DRAIN_POLL = 0.01


class Listeners:
    """The listening sockets of one `Wire`. Every address serves every protocol: the first bytes of a
    connection determine its protocol.
    """

    def __init__(self, wire: Wire, tls: TlsFiles | None = None) -> None:
        """Raises TlsFileError if a TLS file is missing or invalid."""
        self._wire = wire
        self._tls = None if tls is None else LiveTls(tls, wire.loop)
        self._servers: list[asyncio.AbstractServer | TlsAcceptor] = []
        self._unix_files: list[tuple[Path, int]] = []
        self._timer: asyncio.Handle | None = None
        self._walk: Iterator[Connection] = iter(())
        limits = wire.limits
        shortest = min(limits.header_timeout, limits.progress_timeout, limits.idle_timeout)
        self._interval = SHORT_SWEEP_INTERVAL if shortest < SHORT_LIMIT else SWEEP_INTERVAL

    @property
    def secure(self) -> bool:
        """Whether ports use TLS, unless they are opened as `plain` or `metrics_only`."""
        return self._tls is not None

    def reload(self) -> None:
        """Reads the TLS files again. Open connections are not affected."""
        if self._tls is not None:
            self._tls.reload()

    async def open_tcp(
        self, host: str, port: int, *, metrics_only: bool = False, plain: bool = False, reuse: bool = False
    ) -> int:
        """Listens on all addresses of a host and returns the port; port 0 selects a free one.

        "" and "::" mean all addresses of this machine, IPv4 included. A `plain` port has no TLS. A
        `metrics_only` port has no TLS either, and serves only metrics and health checks. With `reuse`, other
        servers that also set `reuse` may listen on the same port. Raises OSError, with the host and the port
        in the message, if the port cannot be opened.
        """
        try:
            name = None if host == "::" else host or None
            infos = await self._wire.loop.getaddrinfo(
                name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )
        except (socket.gaierror, UnicodeError) as error:  # UnicodeError: no host can have this name
            reason = error.strerror if isinstance(error, socket.gaierror) else "this is not a host name"
            raise OSError(errno.EADDRNOTAVAIL, f"cannot listen on {host}:{port}: {reason}") from error
        sockets: list[socket.socket] = []
        try:
            for family, kind, protocol, _, address in dict.fromkeys(infos):
                listening = _bind_tcp(family, kind, protocol, (address[0], port, *address[2:]), reuse=reuse)
                if listening is not None:
                    sockets.append(listening)
                    # The other addresses use the port that was selected for the first one.
                    port = listening.getsockname()[1]
            if not sockets:
                raise OSError(errno.EADDRNOTAVAIL, "the host has no address that this machine can listen on")
            for listening in sockets:
                tls = None if metrics_only or plain else self._tls
                await self._serve(listening, tls, metrics_only=metrics_only)
        except OSError as error:
            for listening in sockets:
                listening.close()
            raise OSError(error.errno, f"cannot listen on {host or '*'}:{port}: {error.strerror}") from error
        return port

    async def open_passed(
        self, listening: socket.socket, *, metrics_only: bool = False, plain: bool = False
    ) -> str:
        """Serves a listening socket that another program has opened, and returns its URL.

        A TCP socket speaks TLS if the server has TLS files, unless `plain` or `metrics_only` is set. With
        `metrics_only`, the socket serves only metrics and health checks. Raises OSError if the socket cannot
        be used.
        """
        local = listening.family == socket.AF_UNIX
        tls = None if local or metrics_only or plain else self._tls
        await self._serve(listening, tls, metrics_only=metrics_only)
        address = listening.getsockname()
        if local:
            return f"unix:{address}"
        host = f"[{address[0]}]" if ":" in address[0] else address[0]
        return f"http{'' if tls is None else 's'}://{host}:{address[1]}"

    async def open_unix(self, path: Path) -> None:
        """Listens on a Unix socket without TLS, replacing a stale socket file.

        Access is protected by the permissions of the socket's folder. Raises OSError, with the path in the
        message, if the socket cannot be opened.
        """
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            _remove_stale(path)
            listening.bind(str(path))
            await self._serve(listening, None)
        except OSError as error:
            listening.close()
            raise OSError(error.errno, f"cannot listen on '{path}': {error.strerror}") from error
        self._unix_files.append((path, os.stat(path).st_ino))

    async def _serve(
        self, listening: socket.socket, tls: LiveTls | None, *, metrics_only: bool = False
    ) -> None:
        wire = self._wire
        listening.setblocking(False)
        if tls is None:
            server = await wire.loop.create_server(
                lambda: Sniffer(wire, metrics_only=metrics_only),
                sock=listening,
                backlog=wire.limits.listen_backlog,
            )
            self._servers.append(server)
        else:
            listening.listen(wire.limits.listen_backlog)
            self._servers.append(TlsAcceptor(wire, listening, tls))
        if self._timer is None:
            self._timer = wire.loop.call_later(self._interval, self._sweep)

    async def close(self, drain_timeout: float) -> None:
        """Stops accepting connections, waits at most `drain_timeout` seconds for requests in flight, and
        closes all connections.
        """
        wire = self._wire
        wire.draining = True
        for server in self._servers:
            server.close()
        self._servers.clear()
        if self._tls is not None:
            self._tls.close()
        for path, inode in self._unix_files:
            # The inode differs if another server has replaced the file since.
            with contextlib.suppress(OSError):
                if os.stat(path).st_ino == inode:
                    os.unlink(path)
        self._unix_files.clear()
        for connection in tuple(wire.connections):
            connection.drain()
        await self._gone(drain_timeout)
        for connection in tuple(wire.connections):
            connection.abort()
        # Aborted transports call connection_lost in the next iteration of the event loop.
        await self._gone(1.0)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _gone(self, timeout: float) -> None:
        """Waits until no connection is left, but at most `timeout` seconds.

        Polls a plain set, because an asyncio.Event would add work to every connection that closes.
        """
        deadline = monotonic() + timeout
        while self._wire.connections and monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_POLL)

    def _sweep(self) -> None:
        """Starts checking all connections whose next check is due. Called once per interval."""
        refresh_date()
        now = monotonic()
        wire = self._wire
        due = []
        # With 10,000 idle connections, looking at each of them every second would take 0.4 % of a core.
        if wire.next_check <= now:
            nearest = inf
            for connection in wire.connections:
                if connection.rests_until <= now:
                    due.append(connection)
                elif connection.rests_until < nearest:
                    nearest = connection.rests_until
            wire.next_check = nearest
        self._walk = iter(due)
        self._sweep_some()

    def _sweep_some(self) -> None:
        wire = self._wire
        now = monotonic()
        for count, connection in enumerate(self._walk, 1):
            if connection in wire.connections:
                try:
                    connection.sweep(now)
                except Exception:
                    logger.exception("closed a connection: checking its time limits failed")
                    connection.abort()
                wire.next_check = min(wire.next_check, connection.rests_until)
            if count == SWEEP_SLICE:
                self._timer = wire.loop.call_soon(self._sweep_some)
                return
        self._timer = wire.loop.call_later(self._interval, self._sweep)


def _bind_tcp(
    family: int, kind: int, protocol: int, address: tuple[object, ...], *, reuse: bool
) -> socket.socket | None:
    """Returns a bound socket, or None if this machine does not support the address family."""
    try:
        listening = socket.socket(family, kind, protocol)
    except OSError:
        return None
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse and hasattr(socket, "SO_REUSEPORT"):
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # This socket accepts only IPv6 connections: IPv4 has a separate socket.
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        if family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return listening


def _remove_stale(path: Path) -> None:
    """Removes the file of a Unix socket on which no server listens.

    Raises OSError if a server listens on the socket, or if the file is not a socket.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, "the path exists and is not a socket; remove it, or choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, "another server is listening on this socket") from None
        else:
            raise OSError(errno.EADDRINUSE, "another server is listening on this socket")


#: The number of connections accepted per iteration of the event loop.
ACCEPTS_PER_TURN = 64
#: Seconds for which no connections are accepted after `accept` has failed, such as for lack of file
#: descriptors.
EXHAUSTED_PAUSE = 0.5


class TlsAcceptor:
    """Accepts TLS connections on one socket.

    Connections in their handshake count toward max_connections and the share of their peer. asyncio's own
    server cannot count these connections: it reports a connection only after the handshake, which is the most
    expensive part. A handshake begins only once the client has sent something, so that connections of silent
    clients take little memory. A handshake takes about a millisecond of CPU time, in two steps, so only one
    begins in each iteration of the event loop. Many connections that arrive together then delay the requests
    of other clients only a little.
    """

    def __init__(self, wire: Wire, listening: socket.socket, tls: LiveTls) -> None:
        self._wire = wire
        self._listening = listening
        self._tls = tls
        #: Connections whose clients have sent nothing yet, each with the timer that closes it.
        self._silent: dict[socket.socket, asyncio.TimerHandle] = {}
        #: Connections whose handshake can begin, each with the time (of the loop) by which the handshake must
        #: have ended.
        self._greeted: deque[tuple[socket.socket, float]] = deque()
        self._handshakes: set[asyncio.Task[None]] = set()
        #: The peer of each connection that is silent, greeted or in its handshake, and the number of such
        #: connections by peer.
        self._peer_of: dict[socket.socket, str | bytes] = {}
        self._waiting: Counter[str | bytes] = Counter()
        self._pause: asyncio.TimerHandle | None = None
        wire.loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Stops accepting, drops connections whose handshake has not begun, and cancels the handshakes in
        progress.
        """
        if self._pause is not None:
            self._pause.cancel()
        self._wire.loop.remove_reader(self._listening)
        self._listening.close()
        for silent in list(self._silent):
            self._forget(silent)
            self._drop(silent)
        while self._greeted:
            self._drop(self._greeted.popleft()[0])
        for handshake in self._handshakes:
            handshake.cancel()

    def _accept(self) -> None:
        loop = self._wire.loop
        for _ in range(ACCEPTS_PER_TURN):
            try:
                accepted, name = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                logger.error(
                    "cannot accept TLS connections, trying again in %s s: %s", EXHAUSTED_PAUSE, error.strerror
                )
                loop.remove_reader(self._listening)
                self._pause = loop.call_later(EXHAUSTED_PAUSE, loop.add_reader, self._listening, self._accept)
                return
            peer = address_of(name)
            if not self._may_connect(peer):
                # No error is sent, because that would need a handshake first.
                accepted.close()
                continue
            self._peer_of[accepted] = peer
            self._waiting[peer] += 1
            accepted.setblocking(False)
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            timeout = self._wire.limits.header_timeout
            self._silent[accepted] = loop.call_later(timeout, self._give_up, accepted)
            loop.add_reader(accepted, self._hear, accepted)

    def _may_connect(self, peer: str | bytes) -> bool:
        wire, peers = self._wire, self._wire.peers
        return (
            len(wire.connections) + len(self._peer_of) < wire.limits.max_connections
            and peers.connections(peer) + self._waiting[peer] < peers.max_connections
        )

    def _leave(self, accepted: socket.socket) -> None:
        """Stops counting a connection whose handshake is over or that is closed."""
        peer = self._peer_of.pop(accepted, None)
        if peer is not None:
            self._waiting[peer] -= 1
            if not self._waiting[peer]:
                del self._waiting[peer]

    def _drop(self, accepted: socket.socket) -> None:
        self._leave(accepted)
        accepted.close()

    def _forget(self, silent: socket.socket) -> float:
        """Stops waiting for the first bytes of a client. Returns the time by which the handshake must have
        ended.
        """
        timer = self._silent.pop(silent)
        timer.cancel()
        self._wire.loop.remove_reader(silent)
        return timer.when()

    def _give_up(self, silent: socket.socket) -> None:
        self._forget(silent)
        self._drop(silent)

    def _hear(self, silent: socket.socket) -> None:
        """Queues the handshake of a client that has sent something, or drops a client that has
        disconnected.
        """
        end = self._forget(silent)
        try:
            heard = silent.recv(1, socket.MSG_PEEK)
        except OSError:
            heard = b""
        if not heard:
            self._drop(silent)
            return
        self._greeted.append((silent, end))
        if len(self._greeted) == 1:
            self._wire.loop.call_soon(self._begin_next)

    def _begin_next(self) -> None:
        loop = self._wire.loop
        if self._greeted:
            accepted, end = self._greeted.popleft()
            handshake = loop.create_task(self._shake_hands(accepted, max(end - loop.time(), 0.1)))
            self._handshakes.add(handshake)
            handshake.add_done_callback(self._handshakes.discard)
        if self._greeted:
            loop.call_soon(self._begin_next)

    async def _shake_hands(self, accepted: socket.socket, timeout: float) -> None:
        wire = self._wire
        try:
            await wire.loop.connect_accepted_socket(
                lambda: cast(asyncio.Protocol, Sniffer(wire)),
                accepted,
                ssl=self._tls.context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=1.0,
            )
        except (TimeoutError, OSError) as error:
            # The client speaks no TLS, has no valid certificate or has disconnected. None of this is an error
            # of the server.
            logger.debug("TLS handshake failed: %s", error)
            accepted.close()
        finally:
            self._leave(accepted)
