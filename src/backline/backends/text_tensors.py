"""Converts strings between protocols, where they are bytes, and runtimes, where they are text."""

from __future__ import annotations

import numpy as np

from backline.engine.errors import InvalidArgument


def decode(model: str, name: str, array: np.ndarray) -> np.ndarray:
    """Decodes an array of bytes. Raises InvalidArgument with the position of bytes that are not UTF-8."""
    texts = np.empty(array.size, np.object_)
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            texts[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"element {index} of input '{name}' of model '{model}' is not UTF-8 text (byte"
                f" {error.start}), as its strings must be"
            ) from None
    return texts.reshape(array.shape)


def encode(array: np.ndarray) -> np.ndarray:
    """Encodes an array of str (or bytes)."""
    encoded = np.empty(array.size, np.object_)
    for index, text in enumerate(array.reshape(-1).tolist()):
        encoded[index] = text.encode() if isinstance(text, str) else text
    return encoded.reshape(array.shape)
