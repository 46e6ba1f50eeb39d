"""The TLS configuration of listeners: certificate, key, client certificates and ALPN."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from backline.system.file_watch import FileWatch
from backline.wire.application import Certificate

log = logging.getLogger("backline.wire")

#: The cipher suites of TLS 1.2: only authenticated encryption with forward secrecy (RFC 9325, section 4.2).
#: All suites of TLS 1.3 are of this kind. Security level 2 rules out SHA-1 signatures and keys that are too
#: short.
CIPHERS = "@SECLEVEL=2:ECDHE+AESGCM:ECDHE+CHACHA20"
#: Changed certificate and key files are read again once they have not changed for this many seconds.
SETTLE = 0.2


#: Whether a client certificate is required or optional.
ClientAuth: TypeAlias = Literal["required", "optional"]


class TlsFileError(ValueError):
    """Raised when a TLS file cannot be used. The message names the file and the problem."""


class TlsFiles(Struct, frozen=True):
    """Paths of PEM files. With `client_ca`, clients must present a certificate signed by that CA (mutual
    TLS), but if `client_auth` is "optional", clients without a certificate are admitted as well.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None
    client_auth: ClientAuth = "required"

    @property
    def only_certified(self) -> bool:
        """Whether every client must have a certificate."""
        return self.client_ca is not None and self.client_auth == "required"

    def context(self) -> ssl.SSLContext:
        """Returns a context for a server, with TLS 1.2 or later and the ALPN protocols h2 and http/1.1.
        Raises TlsFileError if a file is missing or invalid.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["h2", "http/1.1"])
        _check_readable("certificate", self.certificate)
        _check_readable("key", self.key)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_refuse_password(self.key))
        except ssl.SSLError as error:
            raise TlsFileError(_explain(self.certificate, self.key, error)) from error
        if self.client_ca is not None:
            _check_readable("client CA", self.client_ca)
            try:
                context.load_verify_locations(self.client_ca)
            except ssl.SSLError as error:
                raise TlsFileError(
                    f"TLS client CA '{self.client_ca}' holds no certificate in PEM form"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED if self.only_certified else ssl.CERT_OPTIONAL
        return context


#: The short names of the attributes of a subject (RFC 4519, section 2), by the long names that Python uses.
ATTRIBUTES = {
    "commonName": "CN",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "stateOrProvinceName": "ST",
    "localityName": "L",
    "domainComponent": "DC",
    "userId": "UID",
}


def read_certificate(presented: Mapping[str, Any]) -> Certificate:
    """Reads a certificate in the form that `SSLSocket.getpeercert` returns."""
    subject = (pair for relative in presented.get("subject", ()) for pair in relative)
    return Certificate(
        frozenset(f"{ATTRIBUTES.get(name, name)}={value}" for name, value in subject),
        frozenset(
            f"{kind}:{value.lower() if kind == 'DNS' else value}"
            for kind, value in presented.get("subjectAltName", ())
        ),
        float(ssl.cert_time_to_seconds(presented["notAfter"])),
    )


class LiveTls:
    """The TLS context for new handshakes. It is replaced when the files change while the server runs.

    Each change creates a new context, because the old one must remain usable: it is kept if the new key does
    not match the new certificate, and handshakes in progress continue with it. Open connections are not
    affected.
    """

    def __init__(self, files: TlsFiles, loop: asyncio.AbstractEventLoop) -> None:
        """Raises TlsFileError if a file is missing or invalid."""
        self._files = files
        paths = [path for path in (files.certificate, files.key, files.client_ca) if path is not None]
        # The watch is created before the files are read, so that a change in between is not missed.
        self._watch = FileWatch(paths, self._apply, loop, settle=SETTLE)
        try:
            self.context = files.context()
        except TlsFileError:
            self._watch.close()
            raise

    def close(self) -> None:
        self._watch.close()

    def reload(self) -> None:
        """Reads the files again, whether or not they have changed. If they are not valid, the current context
        remains in use.
        """
        self._watch.mark_read()
        self._apply()

    def _apply(self) -> None:
        try:
            self.context = self._files.context()
        except (TlsFileError, OSError) as error:  # OSError if a file has just been removed
            log.error("%s; new connections still get the previous certificate", error)
            return
        log.info("new connections get the certificate in '%s'", self._files.certificate)


def _check_readable(what: str, path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise TlsFileError(f"TLS {what} '{path}' cannot be read: {error.strerror}") from error


def _refuse_password(key: Path) -> Callable[[], str]:
    def ask() -> str:
        raise TlsFileError(
            f"TLS key '{key}' is encrypted; store it without a password, readable only by the server"
        )

    return ask


def _explain(certificate: Path, key: Path, error: ssl.SSLError) -> str:
    """Returns a text that says which of the two files is at fault, because OpenSSL does not say."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"TLS key '{key}' does not belong to the certificate '{certificate}'"
    if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
        return f"TLS certificate '{certificate}' holds no certificate in PEM form"
    if b"PRIVATE KEY-----" not in key.read_bytes():
        return f"TLS key '{key}' holds no private key in PEM form"
    return f"TLS certificate '{certificate}' with key '{key}' cannot be loaded: {error.reason or error}"
