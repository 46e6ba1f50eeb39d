"""How far the outputs of two versions for the same request are apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor

#: The distance of outputs that cannot be compared number by number, because shapes or datatypes differ, or
#: only one of the two has a NaN or infinity at some place.
INCOMPARABLE: Final = 1.0


def distance(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """Returns the largest distance of two outputs with the same name, from 0 (equal) to 1.

    For floating-point outputs, it is |expected - got| / (|expected| + |got|) with Euclidean norms: about half
    of the relative error, where that is small. For all others, it is the share of the elements that differ.
    """
    others = {tensor.name: tensor for tensor in got}
    if len(others) != len(expected):
        return INCOMPARABLE
    return max((_of(tensor, others.get(tensor.name)) for tensor in expected), default=0.0)


def _of(expected: Tensor, got: Tensor | None) -> float:
    if got is None or got.datatype is not expected.datatype or got.shape != expected.shape:
        return INCOMPARABLE
    one, other = expected.data, got.data
    if expected.datatype is DataType.BF16:
        one, other = _widened(one), _widened(other)
    if one.size == 0:
        return 0.0
    if one.dtype.kind != "f":
        return float(np.mean(one != other))
    one, other = one.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    finite = np.isfinite(one) & np.isfinite(other)
    if not finite.all():
        if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
            return INCOMPARABLE
        one, other = one[finite], other[finite]
    # Scaling first keeps the squares finite.
    largest = max(np.abs(one).max(initial=0.0), np.abs(other).max(initial=0.0))
    if largest == 0.0:
        return 0.0
    one, other = one / largest, other / largest
    return float(np.linalg.norm(one - other) / (np.linalg.norm(one) + np.linalg.norm(other)))


def _widened(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)
