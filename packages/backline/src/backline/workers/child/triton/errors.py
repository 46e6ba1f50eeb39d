"""The errors that models for Triton's Python backend create and receive."""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Final

from backline_client.values.errors import (
    AlreadyExists,
    BacklineError,
    Cancelled,
    InvalidArgument,
    ModelFailed,
    NotFound,
    Unavailable,
    Unknown,
    Unsupported,
)


class TritonModelException(Exception):
    """The exception that the functions and methods of `triton_python_backend_utils` raise."""


class ErrorCode(IntEnum):
    """Triton's error codes."""

    UNKNOWN = 0
    INTERNAL = 1
    NOT_FOUND = 2
    INVALID_ARG = 3
    UNAVAILABLE = 4
    UNSUPPORTED = 5
    ALREADY_EXISTS = 6
    CANCELLED = 7


_CLASSES: Final[dict[ErrorCode, type[BacklineError]]] = {
    ErrorCode.UNKNOWN: Unknown,
    ErrorCode.INTERNAL: ModelFailed,
    ErrorCode.NOT_FOUND: NotFound,
    ErrorCode.INVALID_ARG: InvalidArgument,
    ErrorCode.UNAVAILABLE: Unavailable,
    ErrorCode.UNSUPPORTED: Unsupported,
    ErrorCode.ALREADY_EXISTS: AlreadyExists,
    ErrorCode.CANCELLED: Cancelled,
}


class TritonError:
    """The error of a response. It cannot be raised: a model passes it to an InferenceResponse."""

    UNKNOWN: ClassVar = ErrorCode.UNKNOWN
    INTERNAL: ClassVar = ErrorCode.INTERNAL
    NOT_FOUND: ClassVar = ErrorCode.NOT_FOUND
    INVALID_ARG: ClassVar = ErrorCode.INVALID_ARG
    UNAVAILABLE: ClassVar = ErrorCode.UNAVAILABLE
    UNSUPPORTED: ClassVar = ErrorCode.UNSUPPORTED
    ALREADY_EXISTS: ClassVar = ErrorCode.ALREADY_EXISTS
    CANCELLED: ClassVar = ErrorCode.CANCELLED

    def __init__(self, message: str, code: ErrorCode = ErrorCode.INTERNAL) -> None:
        if not isinstance(message, str):
            raise TypeError(f"TritonError: the message is a {type(message).__name__}, expected a str")
        self._message = message
        self._code = ErrorCode(code)

    def code(self) -> ErrorCode:
        return self._code

    def message(self) -> str:
        return self._message


def to_backline(error: TritonError) -> BacklineError:
    """Converts the error of a response to the error that fails its request."""
    return _CLASSES[error.code()](error.message())


def to_triton(error: BacklineError) -> TritonError:
    """Converts the error of a call to the error that the calling model gets."""
    code = next((code for code, kind in _CLASSES.items() if isinstance(error, kind)), ErrorCode.INTERNAL)
    return TritonError(error.message, code)
