"""Inputs that clients do not send: they describe to the model which requests were joined, and how."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import TypeAlias

import numpy as np

from backline.engine.joining import BatchInput

Arrays: TypeAlias = Mapping[str, np.ndarray]
#: Computes a hidden input from the requests, their rows, and the joined inputs.
Describe: TypeAlias = Callable[[Sequence[Arrays], Sequence[int], Arrays], np.ndarray]


def lengths(
    name: str, axis: int, dtype: np.dtype, requests: Sequence[Arrays], rows: Sequence[int], _: Arrays
) -> np.ndarray:
    """The length of each item of an input along an axis."""
    return np.repeat(np.array([request[name].shape[axis] for request in requests], dtype), rows)


def mask(
    name: str, axis: int, dtype: np.dtype, requests: Sequence[Arrays], rows: Sequence[int], inputs: Arrays
) -> np.ndarray:
    """Which elements of each item are real rather than padding, at the padded length in `inputs`."""
    real = lengths(name, axis, np.dtype(np.int64), requests, rows, inputs)
    return (np.arange(inputs[name].shape[axis]) < real[:, np.newaxis]).astype(dtype)


def _element_counts(batch_input: BatchInput, requests: Sequence[Arrays]) -> list[int]:
    return [request[batch_input.source].size for request in requests]


def _element_count(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    return np.array(_element_counts(batch_input, requests), dtype)


def _accumulated(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    return np.cumsum(_element_counts(batch_input, requests)).astype(dtype)


def _accumulated_with_zero(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    return np.array([0, *accumulate(_element_counts(batch_input, requests))], dtype)


def _max_as_shape(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    """Only the shape has a meaning."""
    return np.zeros(max(_element_counts(batch_input, requests)), dtype)


def _item_shape(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    """One row per item of the batch rather than per request."""
    return np.concatenate(
        [
            np.tile(np.array(source.shape[1:], dtype), (len(source), 1))
            for source in _sources(batch_input, requests)
        ]
    )


def _item_shape_flat(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    return _item_shape(batch_input, dtype, requests).reshape(-1)


def _sources(batch_input: BatchInput, requests: Sequence[Arrays]) -> list[np.ndarray]:
    return [request[batch_input.source] for request in requests]


#: Triton's kinds of batch inputs, each a function of the BatchInput, its dtype and the requests
#: (backend/src/backend_input_collector.cc).
BATCH_INPUTS: Mapping[str, Callable[..., np.ndarray]] = {
    "BATCH_ELEMENT_COUNT": _element_count,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": _accumulated,
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": _accumulated_with_zero,
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": _max_as_shape,
    "BATCH_ITEM_SHAPE": _item_shape,
    "BATCH_ITEM_SHAPE_FLATTEN": _item_shape_flat,
}
