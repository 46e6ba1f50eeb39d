"""What image and sound hints share: a file in the request, an array in the model."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

from backline.engine.errors import Internal

#: The default limit for a decoded image or sound, in bytes: a small file may decode to a huge array.
DECODED_LIMIT: Final = 256 << 20


class Media(Protocol):
    """Decodes a file to what `predict` gets, and encodes what it returns as a file."""

    def check(self, *, output: bool) -> None:
        """Raises InvalidArgument for a hint without meaning for an input (or output), Internal for a
        missing library.
        """

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """Raises InvalidArgument if the file cannot be decoded, or would exceed `limit` bytes decoded."""

    def encode(self, value: Any) -> bytes:
        """Raises TypeError or ValueError for a value that does not fit the hint."""


def library(module: str, what: str, package: str, extra: str) -> Any:
    """Imports a library. Raises Internal with what to install if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Internal(
            f"{what} needs {package} ({error}): pip install 'backline[{extra}]',"
            " or name it in the model's requirements"
        ) from None
