"""Explains connections that fail because the two sides disagree about TLS."""

from __future__ import annotations

import ssl

from backline_client.client.address import Address
from backline_client.client.errors import ConnectionFailed
from backline_client.client.options import ClientOptions

#: OpenSSL's codes for certificates that are invalid whichever CAs the client trusts (X509_V_ERR_...).
_NOT_YET_VALID, _EXPIRED = 9, 10
_OTHER_NAME = frozenset((62, 64))


def unanswered(address: Address, options: ClientOptions) -> str:
    """Returns advice for when a server closes a new connection without sending a byte; may be empty.

    In TLS 1.3 the client has completed its handshake before the server can refuse the client. Many servers,
    Backline among them, then close the connection without saying why.
    """
    if address.unix:
        return ""
    if not address.tls:
        return f" If that port speaks TLS, use {_switched(address)}."
    if options.certificate is None:
        return (
            " The server may require a client certificate: pass certificate='client.crt' and"
            " key='client.key' (--certificate and --key on the command line)."
        )
    return (
        f" The server may not accept the client certificate '{options.certificate}': it must be signed by the"
        " CA given to the server's --ssl-client-ca."
    )


def no_tls(address: Address) -> ConnectionFailed:
    """Returns the error for a TLS handshake with a port that closes the connection or sends other data."""
    return ConnectionFailed(
        f"{address.url} does not speak TLS on that port. Use {_switched(address)}, or start the server with"
        " --ssl-certificate and --ssl-key"
    )


def unverified(address: Address, reason: str, code: int = 0) -> ConnectionFailed:
    """Returns the error for a server certificate that the client rejects, with OpenSSL's `code` if known."""
    if code in (_EXPIRED, _NOT_YET_VALID):
        advice = "Renew the certificate, or check the clocks of both machines"
    elif code in _OTHER_NAME:
        advice = "Use a name or address that the certificate contains, or get one issued for this host"
    else:
        advice = (
            "Pass ca='ca.pem' (--ca ca.pem on the command line) with the certificate of the CA that signed"
            " the server's certificate"
        )
    return ConnectionFailed(f"the certificate of {address.url} cannot be verified: {reason}. {advice}")


def failed_handshake(address: Address, error: ssl.SSLError) -> ConnectionFailed:
    """Returns the error for a handshake that failed with OpenSSL's `error`."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return unverified(address, error.verify_message.rstrip("."), error.verify_code)
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"):
        return no_tls(address)
    return ConnectionFailed(f"the TLS handshake with {address.url} failed: {error.reason or error}")


def _switched(address: Address) -> str:
    """Returns the URL with TLS switched on or off: https instead of http, or grpc instead of grpcs."""
    scheme, _, rest = address.url.partition("://")
    return f"{scheme[:-1] if address.tls else scheme + 's'}://{rest}"
