"""Strings between the protocols, where they are bytes, and runtimes, where they are UTF-8 text."""

from __future__ import annotations

import numpy as np

from backline.engine.errors import InvalidArgument


def decode(model: str, name: str, array: np.ndarray) -> np.ndarray:
    """An array of str for an array of bytes. Raises InvalidArgument with the place of bytes that are no UTF-8."""
    texts = np.empty(array.size, np.object_)
    for index, element in enumerate(array.reshape(-1).tolist()):
        try:
            texts[index] = element.decode() if isinstance(element, bytes) else str(element)
        except UnicodeDecodeError as error:
            raise InvalidArgument(
                f"element {index} of input '{name}' of model '{model}' is not UTF-8 text (byte {error.start}), as its strings must be"
            ) from None
    return texts.reshape(array.shape)


def encode(array: np.ndarray) -> np.ndarray:
    """An array of bytes for an array of str (or of bytes)."""
    encoded = np.empty(array.size, np.object_)
    for index, text in enumerate(array.reshape(-1).tolist()):
        encoded[index] = text.encode() if isinstance(text, str) else text
    return encoded.reshape(array.shape)
