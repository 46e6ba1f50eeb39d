"""All kinds of errors, with HTTP status and gRPC code. No other module picks a status code.

| class              | HTTP | gRPC                  | when                                                   |
| ------------------ | ---- | --------------------- | ------------------------------------------------------ |
| InvalidArgument    | 400  | 3 INVALID_ARGUMENT    | the request is malformed or does not fit the model     |
| Unauthenticated    | 401  | 16 UNAUTHENTICATED    | credentials are missing, unknown or expired            |
| Forbidden          | 403  | 7 PERMISSION_DENIED   | the caller may not do this                             |
| NotFound           | 404  | 5 NOT_FOUND           | no such model, version, output or route                |
| AlreadyExists      | 400  | 6 ALREADY_EXISTS      | what should be created exists already                  |
| NotAcceptable      | 406  | 3 INVALID_ARGUMENT    | the response has no form that the client accepts       |
| PayloadTooLarge    | 413  | 8 RESOURCE_EXHAUSTED  | the request exceeds a limit of the server              |
| UnsupportedMediaType | 415 | 3 INVALID_ARGUMENT   | the body's type fits no input of the model             |
| QuotaExceeded      | 429  | 8 RESOURCE_EXHAUSTED  | the caller has used up its quota                       |
| Unavailable        | 503  | 14 UNAVAILABLE        | try again later: loading, draining, queue full         |
| DeadlineExceeded   | 504  | 4 DEADLINE_EXCEEDED   | the deadline passed before a response was ready        |
| Cancelled          | 499  | 1 CANCELLED           | the caller has left                                    |
| Unsupported        | 501  | 12 UNIMPLEMENTED      | the server does not support this                       |
| Internal           | 500  | 13 INTERNAL           | a bug or failure in the server or the model            |
| Unknown            | 400  | 2 UNKNOWN             | a model reports a failure without saying which kind    |

The statuses are those of Triton's HTTP and gRPC front ends, except 404 for an unknown model (Triton: 400 or
404, depending on its version), 413 for a large body (Triton: 400), 504 and 499.
"""

from __future__ import annotations

from typing import ClassVar, Final

from backline.engine.private_places import for_clients

#: The maximum length of a message in characters. A message may quote names from a request, which can be
#: megabytes long.
LONGEST_MESSAGE: Final = 16_384


class BacklineError(Exception):
    """The base class of all errors that callers may see.

    The message says what is wrong, where, and what to do.
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
        """The message as clients see it, with the paths of the server's private folders replaced."""
        return for_clients(self.message)

    #: After how many seconds a retry makes sense; None if it does not.
    retry_after: float | None = None
    #: Whether the request was refused before it was queued. Set only on the errors that models in worker
    #: processes get from their calls.
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
    """Raised when the caller has used up its quota: for this caller, the server is not available now."""

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
    """Raised when a caller that accepts one response calls a decoupled model. Dialects reword the message."""


class Internal(BacklineError):
    http_status = 500
    grpc_code = 13


class ModelFailed(Internal):
    """An error that the model itself reported; its text is passed on verbatim."""


class Unknown(BacklineError):
    http_status = 400
    grpc_code = 2
