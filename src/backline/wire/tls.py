"""TLS configuration of listeners: certificate, key, client certificates, ALPN."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class TlsFileError(ValueError):
    """A TLS file cannot be used. The message names the file and the problem."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Paths of PEM files. With `client_ca`, clients must present a certificate signed by it (mutual TLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """A server context: TLS 1.2 or later, ALPN h2 and http/1.1. Raises TlsFileError for a bad file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
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
            context.verify_mode = ssl.CERT_REQUIRED
        return context


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
    """Determines which of the two files is at fault; OpenSSL does not say."""
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"TLS key '{key}' does not belong to the certificate '{certificate}'"
    if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
        return f"TLS certificate '{certificate}' holds no certificate in PEM form"
    if b"PRIVATE KEY-----" not in key.read_bytes():
        return f"TLS key '{key}' holds no private key in PEM form"
    return f"TLS certificate '{certificate}' with key '{key}' cannot be loaded: {error.reason or error}"
