"""What hints of images and sounds have in common: bytes of a file in a request, arrays in the model."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final, Protocol

from backline.engine.errors import Internal

#: Bytes that an image or a sound may have when it is decoded, where the model does not say: what is small in a request may be huge then.
DECODED_LIMIT: Final = 256 << 20


class Media(Protocol):
    """How the bytes of a file become what `predict` gets, and what it returns becomes a file."""

    def check(self, *, output: bool) -> None:
        """Raises InvalidArgument for a hint that means nothing for an input (or output), Internal where a library is missing."""

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """Raises InvalidArgument for what cannot be decoded, or becomes larger than `limit` bytes."""

    def encode(self, value: Any) -> bytes:
        """Raises TypeError or ValueError for what is not as the hint says."""


def library(module: str, what: str, package: str, extra: str) -> Any:
    """A library that decodes. Raises Internal with what to install where it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Internal(
            f"{what} needs {package} ({error}): pip install 'backline[{extra}]', or name it in the model's requirements"
        ) from None
