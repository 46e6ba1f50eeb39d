"""Joining requests of different shapes into one run, and splitting its outputs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.joining import BatchInput, BatchInputKind, Cut, Joining, Padding
from backline.workers.joiner import Joiner
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec

FP32, INT32 = DataType.FP32, DataType.INT32
FLAT = TensorSpec("x", FP32, (-1,))
ROWS = TensorSpec("x", FP32, (-1, -1))


def joiner(
    joining: Joining, *inputs: TensorSpec, outputs: Sequence[TensorSpec] = (TensorSpec("y", FP32, ()),)
) -> Joiner:
    scattered = dict.fromkeys(joining.scattered, (-1, -1))
    return Joiner("here", joining, Signature(inputs, tuple(outputs)), scattered, batched=True)


def batch_input(
    kind: BatchInputKind, shapes: Sequence[tuple[int, ...]], datatype: DataType = INT32
) -> np.ndarray:
    """The batch input of this kind for requests of these shapes."""
    rank = 2 if kind == "BATCH_ITEM_SHAPE" else 1
    target = TensorSpec("t", datatype, (-1,) * rank)
    made = joiner(
        Joining(ragged=("x",), batch_inputs=(BatchInput(kind, ("t",), datatype, "x"),)), FLAT, target
    )
    requests = [{"x": np.zeros(shape, np.float32)} for shape in shapes]
    return made.join(requests, [shape[0] for shape in shapes])["t"]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("BATCH_ELEMENT_COUNT", [6, 4]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT", [6, 10]),
        ("BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO", [0, 6, 10]),
        ("BATCH_ITEM_SHAPE", [[3, 1], [3, 1], [2, 2]]),
        ("BATCH_ITEM_SHAPE_FLATTEN", [3, 1, 3, 1, 2, 2]),
    ],
)
@pytest.mark.parametrize("datatype", [INT32, FP32])
def test_batch_inputs_equal_tritons(kind: BatchInputKind, expected: list[object], datatype: DataType) -> None:
    got = batch_input(kind, [(2, 3, 1), (1, 2, 2)], datatype)

    assert got.dtype == datatype.dtype
    assert got.tolist() == expected


def test_the_maximum_count_is_in_the_shape_alone() -> None:
    assert batch_input("BATCH_MAX_ELEMENT_COUNT_AS_SHAPE", [(2, 3, 1), (1, 2, 2)]).shape == (6,)


def test_every_target_of_a_batch_input_gets_it() -> None:
    targets = [TensorSpec(name, INT32, (-1,)) for name in "ab"]
    made = joiner(
        Joining(ragged=("x",), batch_inputs=(BatchInput("BATCH_ELEMENT_COUNT", ("a", "b"), INT32, "x"),)),
        FLAT,
        *targets,
    )

    inputs = made.join([{"x": np.zeros((1, 3), np.float32)}], [1])

    assert inputs["a"].tolist() == inputs["b"].tolist() == [3]


rows_of = st.lists(st.integers(1, 3), min_size=1, max_size=5)


@st.composite
def requests(draw: st.DrawFn, *, longest: int = 9) -> tuple[list[dict[str, np.ndarray]], list[int]]:
    """Requests for `x` with distinct values, so that lost, doubled or swapped elements show."""
    rows = draw(rows_of)
    lengths = draw(st.lists(st.integers(1, longest), min_size=len(rows), max_size=len(rows)))
    made, value = [], 1
    for count, length in zip(rows, lengths, strict=True):
        made.append({"x": np.arange(value, value + count * length, dtype=np.float32).reshape(count, length)})
        value += count * length
    return made, rows


@given(requests())
def test_ragged_requests_are_concatenated_and_scattered_back(
    joined: tuple[list[dict[str, np.ndarray]], list[int]],
) -> None:
    given_, rows = joined
    made = joiner(Joining(ragged=("x",), scattered={"y": "x"}), FLAT)

    inputs = made.join(given_, rows)
    outputs = made.split(given_, rows, ["y"], [inputs["x"] * 2])

    assert inputs["x"].tolist() == list(range(1, inputs["x"].size + 1))
    for request, (own,) in zip(given_, outputs, strict=True):
        np.testing.assert_array_equal(own, request["x"] * 2)


@given(
    requests(),
    st.lists(st.integers(1, 12), unique=True, max_size=3).map(sorted),
    st.sampled_from([(), (4, 8, 16), (15,)]),
)
def test_padded_requests_get_their_own_outputs_back(
    joined: tuple[list[dict[str, np.ndarray]], list[int]], buckets: list[int], sizes: tuple[int, ...]
) -> None:
    given_, rows = joined
    padding = Padding(value="-7", buckets=tuple(buckets), lengths="n", mask="m")
    made = joiner(
        Joining(allowed_batch_sizes=sizes, padding={"x": padding}, cuts={"y": Cut("x")}),
        ROWS,
        TensorSpec("n", DataType.INT64, (-1,)),
        TensorSpec("m", DataType.BOOL, (-1, -1)),
        outputs=[TensorSpec("y", FP32, (-1, -1)), TensorSpec("rows", FP32, (-1,))],
    )

    inputs = made.join(given_, rows)
    outputs = made.split(given_, rows, ["y", "rows"], [inputs["x"] + 0.5, inputs["x"][:, 0]])

    longest = max(request["x"].shape[1] for request in given_)
    size = next((size for size in sizes if size >= sum(rows)), sum(rows))
    assert inputs["x"].shape == (size, next((bucket for bucket in buckets if bucket >= longest), longest))
    assert (inputs["x"][~inputs["m"]] == -7).all()
    assert inputs["m"].sum(axis=1).tolist() == inputs["n"].tolist()
    assert (inputs["x"][sum(rows) :, : given_[0]["x"].shape[1]] == given_[0]["x"][0]).all()
    for request, (own, first) in zip(given_, outputs, strict=True):
        np.testing.assert_array_equal(own, request["x"] + 0.5)
        np.testing.assert_array_equal(first, request["x"][:, 0])


@given(st.integers(1, 400), st.integers(1, 40), st.integers(1, 60))
def test_a_cut_counts_the_windows_that_fit(length: int, hop: int, window: int) -> None:
    starts = [start for start in range(0, length, hop) if start + window <= length]

    assert Cut("x", hop=hop, window=window).length(length) == len(starts)


def test_a_single_request_is_not_copied() -> None:
    made = joiner(Joining(padding={"x": Padding()}), ROWS)
    array = np.zeros((2, 3), np.float32)

    assert made.join([{"x": array}], [2])["x"] is array


def test_without_axes_all_varying_dimensions_are_padded() -> None:
    spec = TensorSpec("x", FP32, (-1, 2, -1, -1))
    made = joiner(Joining(pad_all=True), spec)

    joined = made.join(
        [{"x": np.ones((1, 2, 3, 1), np.float32)}, {"x": np.ones((1, 2, 1, 4), np.float32)}], [1, 1]
    )["x"]

    assert made.joining.padding["x"].axes == (2, 3)
    assert joined.shape == (2, 2, 3, 4)
    assert joined.sum() == 2 * 3 * 1 + 2 * 1 * 4


@pytest.mark.parametrize(
    ("datatype", "text", "expected"),
    [
        (FP32, "", 0.0),
        (DataType.FP64, "-1.5", -1.5),
        (DataType.INT64, "-100", -100),
        (DataType.BOOL, "true", True),
        (DataType.BYTES, "[PAD]", b"[PAD]"),
        (DataType.BF16, "1", 0x3F80),
    ],
)
def test_the_padding_value_has_the_datatype_of_the_input(
    datatype: DataType, text: str, expected: object
) -> None:
    made = joiner(Joining(padding={"x": Padding(value=text)}), TensorSpec("x", datatype, (-1, -1)))
    arrays = [np.ones((1, length), datatype.dtype) for length in (1, 2)]

    assert made.join([{"x": array} for array in arrays], [1, 1])["x"][0, 1] == expected


@pytest.mark.parametrize(
    ("joining", "reason"),
    [
        (Joining(ragged=("z",)), "names the input 'z', which the model does not have; it has 'x'"),
        (
            Joining(padding={"x": Padding(axes=(2,))}),
            r"pads input 'x' along \[2\], but in its shape .* only dimension 1 varies besides the batch",
        ),
        (
            Joining(padding={"x": Padding(mask="x")}, cuts={"z": Cut("x")}),
            "names the output 'z', which the model does not have; it has 'y'",
        ),
        (Joining(padding={"x": Padding(value="x")}), "pads input 'x' with 'x', which is not of type FP32"),
        (
            Joining(cuts={"y": Cut("x")}),
            "cuts output 'y' to the length of 'x', which is not an input padded along one axis",
        ),
        (
            Joining(batch_inputs=(BatchInput("BATCH_ELEMENT_COUNT", ("x",), INT32, "x"),)),
            "creates input 'x' as TYPE_INT32, but the model declares",
        ),
    ],
)
def test_rules_that_do_not_fit_the_model_are_refused(joining: Joining, reason: str) -> None:
    with pytest.raises(InvalidArgument, match=f"here {reason}"):
        joiner(joining, ROWS)


def test_hidden_inputs_of_a_missing_optional_input_are_omitted() -> None:
    specs = (TensorSpec("w", FP32, (-1,)), ROWS, TensorSpec("n", INT32, (-1,)))
    made = joiner(Joining(padding={"x": Padding(lengths="n")}, cuts={"y": Cut("x")}), *specs)
    without = [{"w": np.ones(2, np.float32)}]

    assert list(made.join(without, [2])) == ["w"]
    assert made.split(without, [2], ["y"], [np.ones((2, 3))])[0][0].shape == (2, 3)


def test_too_few_elements_are_an_error() -> None:
    made = joiner(Joining(ragged=("x",), scattered={"y": "x"}), FLAT)

    with pytest.raises(Internal, match="output 'y' has 2 elements, but the shapes of input 'x' require 3"):
        made.split([{"x": np.zeros((1, 3))}], [1], ["y"], [np.zeros(2)])


def test_too_few_rows_are_an_error() -> None:
    made = joiner(Joining(allowed_batch_sizes=(4,)), ROWS)

    with pytest.raises(Internal, match=r"output 'y' has shape \[3\] for a batch of 4"):
        made.split([{"x": np.zeros((3, 3))}], [3], ["y"], [np.zeros(3)])
