"""Checks the server's own files: its folders, keys and certificates, and leftovers in its caches."""

from __future__ import annotations

import os
import shutil
import ssl
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from backline.access.auth_file import AuthDocument, CertificateEntry, KeyEntry, make_policy, read_auth_file
from backline.engine.numbers import format_bytes
from backline.environments.store import Environments, default_folder, unused
from backline.lifecycle.records import default_state_folder
from backline.plugins.tools.doctor.finding import Finding, Repair, error, note, ok, warning
from backline.repository.remote.cache import PARTIAL_SECONDS
from backline.server import ServerOptions
from backline.wire.tls import TlsFileError, TlsFiles
from backline_client.system.user_folders import user_cache
from backline_client.values.errors import BacklineError

_LITTLE_DISK = 1 << 30
DAY = 86_400
#: Certificates, keys and rules that expire within this many seconds are reported.
SOON = 21 * DAY
#: Environments that no model uses are reported if they take at least this many bytes in total.
_MUCH = 1 << 30


@dataclass(frozen=True, slots=True)
class ServerPath:
    """A file or folder of the server. `what` describes it in findings. `mode` is its permissions; None if it
    does not exist. `free` is the number of free bytes on its disk.
    """

    what: str
    path: Path
    mode: int | None = None
    writable: bool = True
    free: int = 1 << 40


@dataclass(frozen=True, slots=True)
class ServerFiles:
    """The facts about the server's own files. The options of the server determine their paths."""

    #: The folders that the server writes to.
    folders: tuple[ServerPath, ...] = ()
    #: Files whose content must stay secret.
    secrets: tuple[ServerPath, ...] = ()
    #: Local repositories: folders with code that the server runs.
    repositories: tuple[ServerPath, ...] = ()
    auth_error: str = ""
    #: The time when each key and each rule for client certificates expires, in seconds since 1970, by name.
    key_expiries: Mapping[str, float] = field(default_factory=dict)
    rule_expiries: Mapping[str, float] = field(default_factory=dict)
    tls_error: str = ""
    #: The server's certificate; None if none is configured.
    certificate: Path | None = None
    #: The time when the certificate expires, in seconds since 1970; None if there is no certificate, or if
    #: the time is unknown.
    certificate_expires: float | None = None
    #: Downloads that a crash interrupted.
    unfinished: tuple[Path, ...] = ()
    #: The number and size of environments that no model uses any more.
    unused_environments: int = 0
    unused_bytes: int = 0
    now: float = 0.0


def folders(files: ServerFiles) -> Iterator[Finding]:
    for place in files.folders:
        if not place.writable:
            yield error(
                f"{place.what}, '{place.path}', cannot be written",
                "Downloads fail, and labels, audit records and measurements are lost when the server stops.",
                "Change its owner or permissions, or choose another one with --state-dir or --cache-dir.",
            )
        else:
            yield ok(f"{place.what}, '{place.path}', can be written")


def folder_permissions(files: ServerFiles) -> Iterator[Finding]:
    open_ones = [place for place in files.folders if place.mode is not None and place.mode & stat.S_IWOTH]
    for place in open_ones:
        yield warning(
            f"Every user of this machine may write to {place.what.lower()}, '{place.path}'",
            "Anyone who can change cached models or environments can run code as the server's user.",
            f"chmod o-w '{place.path}'",
            Repair("permit", place.path, (place.mode or 0) & ~stat.S_IWOTH),
        )
    if not open_ones:
        yield ok("Not every user of this machine may write to the server's folders")


def disk_space(files: ServerFiles) -> Iterator[Finding]:
    full = [place for place in files.folders if place.free < _LITTLE_DISK]
    for place in full:
        yield warning(
            f"{format_bytes(place.free)} is free for {place.what.lower()}, '{place.path}'",
            "Downloads of models and builds of environments fail when the disk is full.",
            "Free space, or choose a folder on another disk.",
        )
    if files.folders and not full:
        yield ok(f"{format_bytes(min(place.free for place in files.folders))} is free on disk")


def secret_files(files: ServerFiles) -> Iterator[Finding]:
    readable = [
        place
        for place in files.secrets
        if place.mode is not None and place.mode & (stat.S_IRWXG | stat.S_IRWXO)
    ]
    for place in readable:
        yield warning(
            f"Other users of this machine may read or change {place.what}, '{place.path}'",
            "Anyone who has it can impersonate the server, or get access to the server.",
            f"chmod 600 '{place.path}'",
            Repair("permit", place.path, 0o600),
        )
    if files.secrets and not readable:
        yield ok("Only the owner may read keys")


def repository_permissions(files: ServerFiles) -> Iterator[Finding]:
    writable = [place for place in files.repositories if place.mode is not None and place.mode & stat.S_IWOTH]
    for place in writable:
        yield warning(
            f"Every user of this machine may write to the repository '{place.path}'",
            "A model.py or a pickle in it is code that the server runs.",
            f"chmod o-w '{place.path}'",
            Repair("permit", place.path, (place.mode or 0) & ~stat.S_IWOTH),
        )
    if files.repositories and not writable:
        yield ok("Not every user of this machine may change the repositories")


def key_file(files: ServerFiles) -> Iterator[Finding]:
    if files.auth_error:
        yield error(
            files.auth_error,
            "The server does not start with this file. A running server keeps the keys that it read before.",
            "Correct the file, or write one with 'backline keys create'.",
        )
    expiring = [
        *_expiring(
            "key",
            files.key_expiries,
            files.now,
            "Its holder {} 401.",
            "Rotate the key ('backline keys rotate {}') or revoke it.",
        ),
        *_expiring(
            "rule for client certificates",
            files.rule_expiries,
            files.now,
            "A client with a matching certificate {} 401.",
            "Change 'expires' in the table [[certificates]] named '{}', or remove the table.",
        ),
    ]
    yield from expiring
    if not (files.auth_error or expiring):
        yield ok("No key and no rule for client certificates expires soon")


def _expiring(
    kind: str, expiries: Mapping[str, float], now: float, why: str, advice: str
) -> Iterator[Finding]:
    """Yields a warning for each entry of the file of keys that has expired, or soon will."""
    for name, end in expiries.items():
        if end < now + SOON:
            expired = end <= now
            yield warning(
                f"The {kind} '{name}' {'expired' if expired else 'expires'} on {_date(end)}",
                why.format("gets" if expired else "then gets"),
                advice.format(name),
            )


def certificate(files: ServerFiles) -> Iterator[Finding]:
    end = files.certificate_expires
    if files.tls_error:
        yield error(
            files.tls_error,
            "The server does not start with these files.",
            "Correct --ssl-certificate and --ssl-key; 'backline certs create' makes a pair for development.",
        )
    elif files.certificate is None:
        yield ok("No certificate is configured")
    elif end is None:
        yield note(
            f"The expiry date of the certificate '{files.certificate}' is unknown",
            "Clients refuse to connect if the certificate has expired, or is not valid yet.",
            f"Look at its dates: openssl x509 -noout -dates -in '{files.certificate}'",
        )
    elif end <= files.now:
        yield error(
            "The certificate has expired",
            "Clients refuse to connect.",
            "Renew it. A running server picks up the new files without a restart.",
        )
    elif end < files.now + SOON:
        yield warning(
            f"The certificate expires on {_date(end)}",
            "Clients then refuse to connect.",
            "Renew it. A running server picks up the new files without a restart.",
        )
    else:
        yield ok(f"The certificate is valid until {_date(end)}")


def interrupted_work(files: ServerFiles) -> Iterator[Finding]:
    for path in files.unfinished:
        yield warning(
            f"'{path}' was left by a download that a crash interrupted",
            "It takes space and is never used again.",
            f"Remove it: rm -r '{path}'",
            Repair("remove", path),
        )
    if not files.unfinished:
        yield ok("No interrupted download takes space")


def environments(files: ServerFiles) -> Iterator[Finding]:
    if files.unused_bytes >= _MUCH:
        yield note(
            f"{files.unused_environments} environments that no model uses take"
            f" {format_bytes(files.unused_bytes)}",
            "They were built for earlier requirements of models, or for models that have been removed.",
            "backline env prune",
        )
    else:
        yield ok("Unused environments take little space")


FILES: Mapping[str, Callable[[ServerFiles], Iterator[Finding]]] = {
    "folders": folders,
    "folder-permissions": folder_permissions,
    "disk-space": disk_space,
    "secret-files": secret_files,
    "repository-permissions": repository_permissions,
    "key-file": key_file,
    "certificate": certificate,
    "interrupted-work": interrupted_work,
    "environments": environments,
}


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


def read_files(options: ServerOptions) -> ServerFiles:
    """Returns the facts about the files that a server with these options would use."""
    lifecycle = options.lifecycle
    cache = lifecycle.cache_folder or user_cache()
    state = lifecycle.state_folder or default_state_folder(
        str(Path(location).absolute()) for location in options.repositories
    )
    document, auth_error = _auth(options)
    tls_error, expires = _tls(options.tls)
    secrets = []
    if options.auth is not None:
        secrets.append(_place("the file of keys", options.auth))
    if options.tls is not None:
        secrets.append(_place("the certificate's key", options.tls.key))
    store = Environments(default_folder(cache))
    left: list[int] = []
    with suppress(BacklineError, OSError, ValueError):
        if store.folder.is_dir():
            left = [entry.about.bytes for entry in unused(store.entries(), now=time.time(), seconds=None)]
    return ServerFiles(
        folders=(_place("The state folder", state), _place("The cache folder", cache)),
        secrets=tuple(secrets),
        repositories=tuple(
            _place("a repository", Path(location))
            for location in options.repositories
            if os.path.isdir(location)
        ),
        auth_error=auth_error,
        key_expiries=_expiries(document.keys),
        rule_expiries=_expiries(document.certificates),
        tls_error=tls_error,
        certificate=None if options.tls is None else options.tls.certificate,
        certificate_expires=expires,
        unfinished=tuple(_unfinished(cache / "partial")),
        unused_environments=len(left),
        unused_bytes=sum(left),
        now=time.time(),
    )


def _place(what: str, path: Path) -> ServerPath:
    """Returns the facts about a path. If the path does not exist, it counts as writable if its nearest
    existing parent is writable.
    """
    above = next((each for each in (path, *path.absolute().parents) if each.exists()), Path("/"))
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else None
    return ServerPath(what, path, mode, os.access(above, os.W_OK), shutil.disk_usage(above).free)


def _auth(options: ServerOptions) -> tuple[AuthDocument, str]:
    """Returns the contents of the file of keys, and what is wrong with the file; "" if nothing is."""
    if options.auth is None:
        return AuthDocument(), ""
    try:
        document = read_auth_file(options.auth)
        make_policy(document, folder=options.auth.parent)
    except BacklineError as error:
        return AuthDocument(), error.message
    return document, ""


def _expiries(entries: Iterable[KeyEntry | CertificateEntry]) -> dict[str, float]:
    """Returns when the entries expire, in seconds since 1970, by name, without entries that never do. A time
    without a time zone in the file is taken as UTC.
    """
    return {
        entry.name: entry.expires.replace(tzinfo=entry.expires.tzinfo or UTC).timestamp()
        for entry in entries
        if entry.expires is not None
    }


def _tls(files: TlsFiles | None) -> tuple[str, float | None]:
    """Returns what is wrong with the TLS files ("" if nothing is), and when the certificate expires."""
    if files is None:
        return "", None
    try:
        files.context()
        return "", certificate_end(files)
    except TlsFileError as error:
        return str(error), None


def certificate_end(files: TlsFiles) -> float | None:
    """Returns when a certificate expires, in seconds since 1970; 0.0 if it has expired; None if unknown.

    The ssl module can read only certificates that a peer presents, so this function connects a client to a
    server in memory. If the certificate has expired, the handshake fails.
    """
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    server.load_cert_chain(files.certificate, files.key)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is trusted
    client.load_verify_locations(files.certificate)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends: Sequence[ssl.SSLObject] = (
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLCertVerificationError as error:
                return 0.0 if "expired" in error.verify_message else None
            except ssl.SSLError:
                return None
    presented = ends[0].getpeercert() or {}
    ending = presented.get("notAfter")
    return float(ssl.cert_time_to_seconds(ending)) if isinstance(ending, str) else None


def _unfinished(folder: Path) -> Iterator[Path]:
    """Yields those partial downloads in a folder that are too old to still be in progress."""
    with suppress(OSError):
        for path in sorted(folder.iterdir()):
            if time.time() - path.lstat().st_mtime > PARTIAL_SECONDS:
                yield path
