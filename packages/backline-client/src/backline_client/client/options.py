"""The options of a client's connections."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backline_client.values.errors import InvalidArgument


def check_api_key(key: str, source: str) -> None:
    """Raises InvalidArgument if a key cannot be sent in a header field.

    The error does not contain the key.
    """
    if not key:
        raise InvalidArgument(f"the API key from {source} is empty; set a key, or leave it out")
    if not all("!" <= character <= "~" for character in key):
        raise InvalidArgument(
            f"the API key from {source} has a character that a key cannot have: a space, a line break, or one"
            " that is not ASCII"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """The options of a client. `timeout`, the default for each request, and `connect_timeout` are in seconds.

    `headers` are sent with every request (over gRPC, as metadata). `ca`, `certificate` and `key` are paths of
    PEM files; `verify=False` accepts any server certificate (https only). To an HTTP server, the client opens
    at most `max_connections` connections, not counting those of streams, and makes `retries` further attempts
    if one cannot be opened; gRPC ignores both. Once any part of a request has been sent, the request is sent
    again only if the URL names several servers, and either the first server refused the request or
    `idempotent` says that it is safe to run a request twice. `api_key` is sent with every request as
    `Authorization: Bearer`; the default is the key in the environment variable BACKLINE_KEY, or else the key
    that `backline login` has stored for the URL.
    """

    timeout: float = 60.0
    connect_timeout: float = 10.0
    headers: Mapping[str, str] = field(default_factory=dict)
    verify: bool = True
    ca: str | Path | None = None
    certificate: str | Path | None = None
    key: str | Path | None = None
    max_connections: int = 256
    retries: int = 1
    api_key: str | None = field(default=None, repr=False)
    idempotent: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "headers", self.headers or {})  # programs may pass on a None of their own
        for name in ("timeout", "connect_timeout"):
            if not getattr(self, name) > 0:
                raise InvalidArgument(
                    f"{name} is {getattr(self, name)}, expected a number of seconds above 0"
                )
        if self.max_connections < 1:
            raise InvalidArgument(f"max_connections is {self.max_connections}, expected at least 1")
        if self.retries < 0:
            raise InvalidArgument(f"retries is {self.retries}, expected 0 or more")
        for name, value in self.headers.items():
            if (
                not name.isascii()
                or not all(c.isalnum() or c in "-_." for c in name)
                or "\r" in value
                or "\n" in value
            ):
                raise InvalidArgument(
                    f"header {name!r}: {value!r} cannot be sent: a name may contain only letters, digits,"
                    " '-', '_' and '.', and a value must be one line"
                )
        if self.key is not None and self.certificate is None:
            raise InvalidArgument("a key was given without a certificate: pass certificate='client.crt' too")
        if self.api_key is not None:
            check_api_key(self.api_key, "api_key")

    def ssl_context(self, protocol: str = "http/1.1") -> ssl.SSLContext:
        """Returns the TLS context for connections that speak `protocol`, an ALPN name.

        Raises InvalidArgument for files that cannot be read.
        """
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
            # Allows `ca` to be the server's own certificate instead of a CA certificate, as curl does, and as
            # Python does by default since version 3.13.
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            if self.certificate is not None:
                context.load_cert_chain(str(self.certificate), None if self.key is None else str(self.key))
        except (OSError, ssl.SSLError) as error:
            hint = (
                "" if self.certificate is None or self.key is not None else "; pass the certificate's key too"
            )
            raise InvalidArgument(
                f"cannot read the certificates (ca={self.ca}, certificate={self.certificate},"
                f" key={self.key}): {error}{hint}"
            ) from None
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols([protocol])
        return context
