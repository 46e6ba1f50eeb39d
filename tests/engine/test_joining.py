"""Which requests of different shapes may share a batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.joining import Joining, JoiningCheck, Padding
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Tensor

FP32 = DataType.FP32
INPUTS = (TensorSpec("x", FP32, (-1, -1, -1)), TensorSpec("o", FP32, (-1, -1), optional=True))


def key(joining: Joining, **shapes: tuple[int, ...]) -> object:
    check = RequestCheck("m", Signature(INPUTS, ()), 8, strict=True)
    inputs = {name: Tensor(name, FP32, shape, np.zeros(shape, np.float32)) for name, shape in shapes.items()}
    request = Ticket(InferRequest("m", inputs), lambda *_: None)
    JoiningCheck(check, joining, ("x", "o"))(request)
    assert request.batch_size == shapes["x"][0]
    return request.batch_key


def test_the_shape_of_a_ragged_input_does_not_matter() -> None:
    assert key(Joining(ragged=("x",)), x=(1, 2, 3)) == key(Joining(ragged=("x",)), x=(2, 5, 7))


def test_the_shapes_of_other_inputs_matter() -> None:
    joining = Joining(ragged=("x",))

    assert key(joining, x=(1, 2, 3), o=(1, 2)) != key(joining, x=(1, 2, 3), o=(1, 3))


def test_only_requests_with_the_same_optional_inputs_share_a_batch() -> None:
    """This includes ragged inputs, as in Triton 2.51."""
    joining = Joining(ragged=("x", "o"))

    assert key(joining, x=(1, 2, 3)) != key(joining, x=(1, 2, 3), o=(1, 2))
    assert key(joining, x=(1, 2, 3), o=(1, 9)) == key(joining, x=(1, 2, 3), o=(1, 2))


lengths = st.integers(1, 5000)


@given(lengths, lengths)
def test_without_buckets_no_request_is_padded_to_more_than_twice_its_length(one: int, other: int) -> None:
    joining = Joining(padding={"x": Padding(axes=(1,))})

    if key(joining, x=(1, one, 3)) == key(joining, x=(1, other, 3)):
        assert max(one, other) < 2 * min(one, other) or one == other


@given(lengths, lengths, st.lists(st.integers(1, 5000), min_size=1, max_size=5, unique=True).map(sorted))
def test_with_buckets_requests_padded_to_the_same_length_share_a_batch(
    one: int, other: int, buckets: list[int]
) -> None:
    padding = Padding(axes=(1,), buckets=tuple(buckets))
    joining = Joining(padding={"x": padding})

    same = key(joining, x=(1, one, 3)) == key(joining, x=(1, other, 3))

    assert same == (padding.length(one) == padding.length(other))
    assert padding.length(one) >= one
    assert padding.length(one) in buckets or one > max(buckets)


def test_a_dimension_that_is_not_padded_must_agree() -> None:
    joining = Joining(padding={"x": Padding(axes=(1,))})

    assert key(joining, x=(1, 5, 3)) != key(joining, x=(1, 5, 4))


def test_a_request_that_does_not_fit_the_model_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="batch-size must be <= 8"):
        key(Joining(ragged=("x",)), x=(9, 1, 1))


@given(st.integers(1, 100), st.lists(st.integers(1, 100), unique=True, max_size=4).map(sorted))
def test_a_batch_is_padded_to_the_next_allowed_size(items: int, sizes: list[int]) -> None:
    size = Joining(allowed_batch_sizes=tuple(sizes)).batch_size(items)

    assert size == min((allowed for allowed in sizes if allowed >= items), default=items)
