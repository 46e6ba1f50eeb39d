"""The distance of outputs: from 0 for equal ones to 1, whatever their scale and datatype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from backline.plugins.traffic.distance import distance
from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Tensor

floats = arrays.arrays(np.float32, arrays.array_shapes(max_dims=3, max_side=5))


def tensor(data: Any, datatype: DataType = DataType.FP32, name: str = "y") -> Tensor:
    data = np.asarray(data, datatype.dtype)
    return Tensor(name, datatype, data.shape, data)


def apart(one: Any, other: Any, datatype: DataType = DataType.FP32) -> float:
    return distance([tensor(one, datatype)], [tensor(other, datatype)])


@given(floats)
def test_equal_outputs_have_no_distance(data: np.ndarray) -> None:
    assert apart(data, data.copy()) == 0


@given(floats, st.data())
def test_it_is_symmetric_and_at_most_1(data: np.ndarray, draw: st.DataObject) -> None:
    other = draw.draw(arrays.arrays(np.float32, data.shape))

    found = apart(data, other)

    assert found == apart(other, data)
    assert 0 <= found <= 1 + 1e-12


@pytest.mark.parametrize("error", [1e-6, 1e-3, 0.1, 1.0])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_it_is_half_of_a_relative_error(error: float, scale: float) -> None:
    data = np.linspace(1, 2, 50) * scale

    assert apart(data * (1 + error), data) == pytest.approx(error / (2 + error), rel=0.1)


def test_nan_in_only_one_of_them_makes_them_incomparable() -> None:
    assert apart([1, np.nan], [1, np.nan]) == 0
    assert apart([1, np.nan], [1, 2]) == 1
    assert apart([1, np.inf], [1, -np.inf]) == 1


def test_other_shapes_datatypes_and_names_are_incomparable() -> None:
    assert apart([1, 2], [1, 2, 3]) == 1
    assert distance([tensor([1])], [tensor([1], DataType.INT32)]) == 1
    assert distance([tensor([1])], [tensor([1], name="z")]) == 1
    assert distance([tensor([1])], []) == 1


def test_of_numbers_without_fractions_and_texts_the_share_that_differs_counts() -> None:
    assert apart([1, 2, 3, 4], [1, 2, 3, 5], DataType.INT64) == 0.25
    assert apart([b"a", b"b"], [b"a", b"c"], DataType.BYTES) == 0.5
    assert apart([], [], DataType.INT64) == 0


def test_the_output_that_is_farthest_apart_counts() -> None:
    expected = [tensor([1.0], name="a"), tensor([1.0], name="b")]
    got = [tensor([1.0], name="a"), tensor([3.0], name="b")]

    assert distance(expected, got) == pytest.approx(0.5)
