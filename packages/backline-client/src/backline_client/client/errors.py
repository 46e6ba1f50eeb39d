"""The errors that the client raises: those of the engine, and errors of the connection."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from backline_client.values.errors import (
    AlreadyExists,
    BacklineError,
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    QuotaExceeded,
    Unavailable,
    Unsupported,
)

__all__ = [
    "AlreadyExists",
    "BacklineError",
    "Cancelled",
    "ConnectionFailed",
    "ConnectionLost",
    "CredentialsRefused",
    "DeadlineExceeded",
    "Internal",
    "InvalidArgument",
    "NotFound",
    "PayloadTooLarge",
    "PermissionDenied",
    "ProtocolError",
    "QuotaExceeded",
    "Unavailable",
    "Unsupported",
    "from_grpc_code",
    "from_http_status",
]


class ConnectionFailed(Unavailable):
    """Raised when a connection cannot be opened or breaks (ConnectionLost), or when the client is closed."""


class ConnectionLost(ConnectionFailed):
    """Raised when a connection breaks after a request was sent. The request may have run."""


class PermissionDenied(BacklineError):
    """Raised when the server, or a proxy in front of it, does not allow the request."""

    http_status = 403
    grpc_code = 7


class CredentialsRefused(PermissionDenied):
    """Raised when the server requires a key, or does not accept the key that was sent."""

    http_status = 401
    grpc_code = 16


#: The exceptions that reading a document can raise if the sender is hostile or does not implement the
#: protocol.
UNREADABLE: Final = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    RecursionError,
    msgspec.MsgspecError,
    InvalidArgument,
)


class ProtocolError(BacklineError):
    """Raised when the server does not speak the protocol of the URL, or sends an unreadable message."""


_BY_STATUS: dict[int, type[BacklineError]] = {
    401: CredentialsRefused,
    403: PermissionDenied,
    408: DeadlineExceeded,
    429: QuotaExceeded,
    502: Unavailable,
    **{
        kind.http_status: kind
        for kind in (
            InvalidArgument,
            NotFound,
            PayloadTooLarge,
            Unavailable,
            DeadlineExceeded,
            Cancelled,
            Unsupported,
            Internal,
        )
    },
}
_BY_CODE: dict[int, type[BacklineError]] = {
    7: PermissionDenied,
    9: InvalidArgument,  # FAILED_PRECONDITION
    11: InvalidArgument,  # OUT_OF_RANGE
    16: CredentialsRefused,  # UNAUTHENTICATED
    **{
        kind.grpc_code: kind
        for kind in (
            InvalidArgument,
            NotFound,
            AlreadyExists,
            Unavailable,
            DeadlineExceeded,
            Cancelled,
            Unsupported,
            Internal,
        )
    },
}


def from_http_status(status: int, message: str, retry_after: float | None = None) -> BacklineError:
    """Returns the error for an HTTP status other than 2xx."""
    kind = _BY_STATUS.get(status)
    if kind is None:
        kind = InvalidArgument if 400 <= status < 500 else Internal
    error = kind(message)
    error.retry_after = retry_after
    return error


def from_grpc_code(code: int, message: str, retry_after: float | None = None) -> BacklineError:
    """Returns the error for a gRPC status other than OK."""
    kind = _BY_CODE.get(code, Internal)
    if code == 8:  # RESOURCE_EXHAUSTED: a message is too large, or the caller exceeded a quota
        too_large = retry_after is None and ("message" in message.lower() or "size" in message.lower())
        kind = PayloadTooLarge if too_large else QuotaExceeded
    error = kind(message)
    error.retry_after = retry_after
    return error


def pushback_of(trailers: Iterable[tuple[str, str | bytes]] | None) -> float | None:
    """Returns the number of seconds to wait before a retry, if a gRPC server gives one (gRFC A6), or None."""
    for name, value in trailers or ():
        if name == "grpc-retry-pushback-ms" and isinstance(value, str) and value.isdigit():
            return int(value) / 1000
    return None
