"""The kinds of errors that a server raises, with their HTTP statuses and gRPC codes. Statuses that only HTTP
has are defined elsewhere: 405 (dialects/router.py), 426 (dialects/plain/sockets.py), and 408, 417 and 431,
with which the wire refuses requests.

| class              | HTTP | gRPC                  | when                                                   |
| ------------------ | ---- | --------------------- | ------------------------------------------------------ |
| InvalidArgument    | 400  | 3 INVALID_ARGUMENT    | the request is malformed or does not fit the model     |
| Unauthenticated    | 401  | 16 UNAUTHENTICATED    | credentials are missing, unknown or expired            |
| Forbidden          | 403  | 7 PERMISSION_DENIED   | the caller may not do this                             |
| NotFound           | 404  | 5 NOT_FOUND           | no such model, version, output or route                |
| AlreadyExists      | 400  | 6 ALREADY_EXISTS      | the object to be created already exists                |
| NotAcceptable      | 406  | 3 INVALID_ARGUMENT    | the client accepts no form of the response             |
| PayloadTooLarge    | 413  | 8 RESOURCE_EXHAUSTED  | the request exceeds a limit of the server              |
| UnsupportedMediaType | 415 | 3 INVALID_ARGUMENT   | the body's type fits no input of the model             |
| QuotaExceeded      | 429  | 8 RESOURCE_EXHAUSTED  | the caller has used up its quota                       |
| Unavailable        | 503  | 14 UNAVAILABLE        | try again later: loading, draining, queue full         |
| DeadlineExceeded   | 504  | 4 DEADLINE_EXCEEDED   | the deadline passed before a response was ready        |
| Cancelled          | 499  | 1 CANCELLED           | the caller cancelled the request or disconnected       |
| Unsupported        | 501  | 12 UNIMPLEMENTED      | the server does not support this                       |
| Internal           | 500  | 13 INTERNAL           | a bug or failure in the server or the model            |
| Unknown            | 400  | 2 UNKNOWN             | a model reports a failure without saying which kind    |

docs/decisions/error-statuses.md lists the differences from Triton's statuses.
"""

from __future__ import annotations

from typing import ClassVar, Final

from backline_client.values.private_places import for_clients

#: The maximum length of a message in characters. There is a limit because a message may quote names from a
#: request, and such names can be megabytes long.
LONGEST_MESSAGE: Final = 16_384


class BacklineError(Exception):
    """The base class of all errors that callers may see.

    The message says what is wrong, where it is wrong, and what to do about it.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[int] = 13

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[:LONGEST_MESSAGE]}..."
        super().__init__(message)
        self.message = message

    @property
    def public_message(self) -> str:
        """The message for clients, in which the paths of the server's private folders are replaced."""
        return for_clients(self.message)

    #: The number of seconds after which a retry may succeed; None if a retry is not useful, or the time is
    #: unknown.
    retry_after: float | None = None
    #: Whether the request was refused before it was queued. Set only on errors that models in worker
    #: processes get when they call other models.
    refused: bool = False


class InvalidArgument(BacklineError):
    http_status = 400
    grpc_code = 3


class Unauthenticated(BacklineError):
    http_status = 401
    grpc_code = 16


class Forbidden(BacklineError):
    http_status = 403
    grpc_code = 7


class NotFound(BacklineError):
    http_status = 404
    grpc_code = 5


class AlreadyExists(BacklineError):
    http_status = 400
    grpc_code = 6


class NotAcceptable(BacklineError):
    http_status = 406
    grpc_code = 3


class UnsupportedMediaType(BacklineError):
    http_status = 415
    grpc_code = 3


class PayloadTooLarge(BacklineError):
    http_status = 413
    grpc_code = 8


class Unavailable(BacklineError):
    http_status = 503
    grpc_code = 14

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(Unavailable):
    """Raised when the caller has used up its quota. This is a subclass of Unavailable, because the server is
    currently not available to the caller.
    """

    http_status = 429
    grpc_code = 8


class DeadlineExceeded(BacklineError):
    http_status = 504
    grpc_code = 4


class Cancelled(BacklineError):
    http_status = 499
    grpc_code = 1


class Unsupported(BacklineError):
    http_status = 501
    grpc_code = 12


class DecoupledModel(Unsupported):
    """Raised when a caller that accepts only one response calls a decoupled model. Dialects reword the
    message.
    """


class Internal(BacklineError):
    http_status = 500
    grpc_code = 13


class ModelFailed(Internal):
    """Raised for an error that the model itself reported, with the model's text unchanged."""


class Unknown(BacklineError):
    http_status = 400
    grpc_code = 2
