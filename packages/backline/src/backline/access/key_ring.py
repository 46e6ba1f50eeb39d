"""The keys of one token issuer, read from a file or fetched from a URL, and kept up to date."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import msgspec

from backline.access.browsers import is_loopback
from backline.access.jwks import MAX_SIZE, SigningKey, read_key_set
from backline.system.file_watch import FileWatch
from backline_client.values.errors import InvalidArgument
from backline_client.version import __version__

log = logging.getLogger("backline.access")

#: Seconds after which keys are fetched again.
REFRESH = 300.0
#: Seconds until the next attempt after a first failure; doubled by each further failure, up to REFRESH.
RETRY = 5.0
#: Minimum number of seconds between fetches caused by unknown keys, because anybody can invent the name of a
#: key.
UNKNOWN_KEY_PAUSE = 10.0
#: Maximum duration of a response, and of a pause in a response, in seconds.
FETCH_TIMEOUT = 10.0
#: Seconds after which a fetch is aborted. The limit is meant for servers that send the header byte by byte,
#: and therefore never pause for long.
FETCH_LIMIT = 2 * FETCH_TIMEOUT + 5
_PIECE = 64 * 1024


#: The path, below the URL of an issuer, of the issuer's metadata (OpenID Connect Discovery 1.0, section 4).
_METADATA = "/.well-known/openid-configuration"


def metadata_url(issuer: str) -> str:
    """Returns the URL of an issuer's metadata. Raises InvalidArgument for an issuer that is not a URL."""
    if "://" not in issuer:
        raise InvalidArgument(
            "the name of the issuer is not a URL, so its keys cannot be found: set jwks to the URL or file of"
            " the keys"
        )
    return issuer.rstrip("/") + _METADATA


def check_location(location: str) -> None:
    """Raises InvalidArgument for a URL from which keys must not be fetched.

    Anyone who can impersonate the issuer can sign tokens, so only https URLs and loopback addresses are safe.
    """
    if "://" not in location:
        return
    parts = urlsplit(location)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return
    raise InvalidArgument(
        f"keys cannot be fetched from '{location}': use an https URL, an http URL of a loopback address, or a"
        " file"
    )


def read_key_file(path: Path) -> tuple[SigningKey, ...]:
    """Reads a set of keys. Raises InvalidArgument if the file cannot be read or is not a key set."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_SIZE + 1)
    except OSError as error:
        raise InvalidArgument(f"the keys in '{path}' cannot be read: {error.strerror}") from None
    if len(content) > MAX_SIZE:
        raise InvalidArgument(f"'{path}' is larger than {MAX_SIZE >> 20} MiB, the maximum for a set of keys")
    return read_key_set(content, f"'{path}'")


class FetchAbort:
    """Ends the connections of a fetch, however little of the response has arrived.

    The fetch runs on a separate thread; `abort` may be called on any other thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self._aborted = False

    def watch(self, connection: socket.socket) -> None:
        """Remembers a connection of the fetch. Called for each connection, before TLS begins."""
        # A second descriptor of the connection, because TLS detaches the first one from its socket.
        second = connection.dup()
        with self._lock:
            self._connections.append(second)
            if self._aborted:
                _shut_down(second)

    def abort(self) -> None:
        """Makes all current and later reads and writes of the fetch fail."""
        with self._lock:
            self._aborted = True
            for connection in self._connections:
                _shut_down(connection)

    def close(self) -> None:
        """Forgets the connections. Called when the fetch has ended."""
        with self._lock:
            while self._connections:
                self._connections.pop().close()


def _shut_down(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the server has disconnected
        connection.shutdown(socket.SHUT_RDWR)


def fetch_keys(url: str, abort: FetchAbort) -> tuple[SigningKey, ...]:
    """Fetches a set of keys, or an issuer's metadata and then the keys at the URL that the metadata names.

    Each of these fetches fails if the server sends nothing for FETCH_TIMEOUT seconds, or is still sending the
    body FETCH_TIMEOUT seconds after the start. Raises InvalidArgument if a fetch fails or is aborted.
    """
    try:
        if url.endswith(_METADATA):
            url = _read_metadata(_fetch(url, abort), url)
        return read_key_set(_fetch(url, abort), f"'{url}'")
    finally:
        abort.close()


def _read_metadata(content: bytes, url: str) -> str:
    """Returns the URL of the keys.

    Raises InvalidArgument if the URL is missing or not safe, or the metadata is that of another issuer.
    """
    try:
        found = msgspec.json.decode(content, type=dict[str, Any])
        issuer, location = found["issuer"], found["jwks_uri"]
        if not (isinstance(issuer, str) and isinstance(location, str) and "://" in location):
            raise KeyError
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError):
        raise InvalidArgument(
            f"'{url}' did not return the metadata of an issuer; expected an object with 'issuer' and"
            " 'jwks_uri'"
        ) from None
    if issuer.rstrip("/") != url.removesuffix(_METADATA):
        raise InvalidArgument(
            f"'{url}' returned the metadata of another issuer, '{issuer[:200]}'; correct the issuer's name"
        )
    if url.startswith("https:") and not location.startswith("https:"):
        raise InvalidArgument(
            f"'{url}' says that its keys are at '{location[:200]}', which is not https; set jwks to an https"
            " URL or a file"
        )
    check_location(location)
    return location


def _fetch(url: str, abort: FetchAbort) -> bytes:
    # These imports are slow, and only servers with tokens need them.
    from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
    from urllib.error import HTTPError
    from urllib.request import (
        HTTPHandler,
        HTTPRedirectHandler,
        HTTPSHandler,
        ProxyHandler,
        Request,
        build_opener,
    )

    class Watched(HTTPConnection):
        def connect(self) -> None:
            super().connect()
            abort.watch(self.sock)

    class WatchedTls(HTTPSConnection, Watched):
        """A connection that `Watched.connect` opens, before HTTPSConnection begins TLS."""

    class WatchedHandler(HTTPHandler, HTTPSHandler):
        def http_open(self, request: Request) -> HTTPResponse:
            return self.do_open(Watched, request)

        def https_open(self, request: Request) -> HTTPResponse:
            return self.do_open(WatchedTls, request)

    class NoRedirect(HTTPRedirectHandler):
        """Refuses redirects, which could lead to an address that is not safe."""

        def redirect_request(self, *arguments: Any) -> None:
            return None

    handlers: list[Any] = [NoRedirect(), WatchedHandler()]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(ProxyHandler({}))
    request = Request(url, headers={"accept": "application/json", "user-agent": f"backline/{__version__}"})
    end = monotonic() + FETCH_TIMEOUT
    content = bytearray()
    try:
        with build_opener(*handlers).open(request, timeout=FETCH_TIMEOUT) as answer:
            while piece := answer.read1(_PIECE):
                content += piece
                if len(content) > MAX_SIZE:
                    raise InvalidArgument(
                        f"'{url}' answered with more than {MAX_SIZE >> 20} MiB, the maximum for a set of keys"
                    )
                if monotonic() > end:
                    raise InvalidArgument(f"'{url}' did not answer within {FETCH_TIMEOUT:g} s")
    except HTTPError as error:
        raise InvalidArgument(f"'{url}' answered with status {error.code}") from None
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise InvalidArgument(f"keys cannot be fetched from '{url}': {reason}") from None
    return bytes(content)


class KeyRing:
    """The keys of an issuer. Used on the event loop; a thread fetches the keys, so that no request waits.

    Invariant: if a fetch fails, the previous keys remain valid, so an issuer that is down locks nobody out.
    """

    def __init__(self, location: str, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        """`location` is the URL or the file of the keys. `changed` is called after a key has been removed.

        Raises InvalidArgument if the file cannot be read or is not a key set.
        """
        self._location = location
        self._loop = loop
        self._changed = changed
        self._keys: tuple[SigningKey, ...] = ()
        #: Whether a fetch is in progress.
        self.fetching = False
        #: The number of the last fetch, the object that can abort it, and the timer that aborts it after
        #: FETCH_LIMIT.
        self._attempt = 0
        self._abort = FetchAbort()
        self._limit: asyncio.TimerHandle | None = None
        self._fetched_at = -UNKNOWN_KEY_PAUSE
        self._failures = 0
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch: FileWatch | None = None
        if "://" in location:
            self._fetch()
        else:
            self._keys = read_key_file(Path(location))
            self._watch = FileWatch([Path(location)], self._read_again, loop)

    def close(self) -> None:
        self._closed = True
        self._abort.abort()
        for timer in (self._timer, self._limit):
            if timer is not None:
                timer.cancel()
        if self._watch is not None:
            self._watch.close()

    def find(self, key: str, algorithm: str) -> SigningKey | None:
        """Returns the key with this id for an algorithm; None if there is none.

        If `key` is empty, returns the only key for the algorithm, or None if there are several.
        """
        fitting = [one for one in self._keys if algorithm in one.algorithms and (not key or one.id == key)]
        return fitting[0] if (key and fitting) or len(fitting) == 1 else None

    def holds(self, thumbprint: str) -> bool:
        return any(key.thumbprint == thumbprint for key in self._keys)

    def look_again(self) -> bool:
        """Fetches the keys because a token names an unknown key, unless the keys were fetched within the last
        UNKNOWN_KEY_PAUSE seconds.

        Returns whether a fetch is in progress, which may find the key.
        """
        rested = self._loop.time() - self._fetched_at >= UNKNOWN_KEY_PAUSE
        if self._watch is None and not self.fetching and rested:
            self._fetch()
        return self.fetching

    def _read_again(self) -> None:
        try:
            keys = read_key_file(Path(self._location))
        except InvalidArgument as error:
            log.error("%s; the previous keys stay in force", error.message)
            return
        self._replace(keys)

    def _fetch(self) -> None:
        """Starts a fetch on a daemon thread, so that the server can stop without waiting for the fetch."""
        if self._timer is not None:
            self._timer.cancel()
        self.fetching = True
        self._attempt += 1
        self._fetched_at = self._loop.time()
        self._abort = FetchAbort()
        self._limit = self._loop.call_later(FETCH_LIMIT, self._too_late, self._attempt)
        running = (self._attempt, self._abort)
        threading.Thread(target=self._run, args=running, name="jwks", daemon=True).start()

    def _too_late(self, attempt: int) -> None:
        self._abort.abort()
        late = InvalidArgument(f"'{self._location}' did not answer within {FETCH_LIMIT:g} s")
        self._fetched(attempt, late)

    def _run(self, attempt: int, abort: FetchAbort) -> None:
        found: tuple[SigningKey, ...] | InvalidArgument
        try:
            found = fetch_keys(self._location, abort)
        except InvalidArgument as error:
            found = error
        except Exception as error:
            found = InvalidArgument(f"keys cannot be fetched from '{self._location}': {error!r}")
        if not self._closed:
            # The loop raises RuntimeError if it has been closed during the fetch.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._fetched, attempt, found)

    def _fetched(self, attempt: int, found: tuple[SigningKey, ...] | InvalidArgument) -> None:
        if self._closed or attempt != self._attempt or not self.fetching:
            return
        self.fetching = False
        if self._limit is not None:
            self._limit.cancel()
        if isinstance(found, InvalidArgument):
            delay = min(RETRY * 2**self._failures, REFRESH)
            self._failures += 1
            kept = "; the previous keys stay in force" if self._keys else ""
            log.error("%s%s; trying again in %g s", found.message, kept, delay)
        else:
            self._failures = 0
            delay = REFRESH
            self._replace(found)
        self._timer = self._loop.call_later(delay, self._fetch)

    def _replace(self, keys: tuple[SigningKey, ...]) -> None:
        before = {key.thumbprint for key in self._keys}
        self._keys = keys
        if before - {key.thumbprint for key in keys}:
            self._changed()
