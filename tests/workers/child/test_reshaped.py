"""The shapes that a worker reports for a model with a reshape."""

from __future__ import annotations

import pytest

from backline.engine.config.joining import Joining
from backline.workers.channel.protocol import Spec, WorkerLoad, WorkerLoaded
from backline.workers.child.reshaped import is_reshaped, shapes_of
from backline_client.values.errors import Internal, InvalidArgument

OUTPUTS = [Spec("y", "FP32", [4])]


def load(*inputs: Spec, joining: Joining | None = None) -> WorkerLoad:
    return WorkerLoad("", "m", "1", "", "", inputs=list(inputs), joining=joining)


def test_type_hints_are_checked_against_the_reshape() -> None:
    asked = load(Spec("x", "FP32", [-1, 2], reshape=[2, -1]))
    inputs, outputs = shapes_of(asked, WorkerLoaded([Spec("x", "FP32", [2, 5])], OUTPUTS, 8))

    assert is_reshaped(asked)
    assert inputs.specs == [Spec("x", "FP32", [5, 2])]
    assert inputs.to_model["x"].shape("x", (3, 5, 2)) == (3, 2, 5)
    assert (outputs.specs, outputs.to_server) == (OUTPUTS, {})
    with pytest.raises(
        InvalidArgument,
        match=r"input 'x' has the reshape \[2, -1\] in its configuration,"
        r" but the shape \[5, 2\] in the model",
    ):
        shapes_of(asked, WorkerLoaded([Spec("x", "FP32", [5, 2])], OUTPUTS, 8))


def test_a_mismatched_shape_is_an_error_with_the_expected_one() -> None:
    inputs, _ = shapes_of(
        load(Spec("x", "FP32", [4], reshape=[2, 2])), WorkerLoaded([Spec("x", "FP32", [2, 2])], OUTPUTS)
    )
    with pytest.raises(
        Internal, match=r"has 'x' with shape \[4\], but its configuration reshapes \[2, 2\] to \[4\]"
    ):
        inputs.to_server["x"].shape("x", (4,))


def test_ragged_inputs_are_flat_in_a_model_that_joins() -> None:
    asked = load(Spec("x", "FP32", [-1], reshape=[1, -1]), joining=Joining(("x",)))
    hints = [Spec("x", "FP32", [-1])]

    joins, _ = shapes_of(asked, WorkerLoaded(hints, OUTPUTS, 8, joins=True))
    apart, _ = shapes_of(asked, WorkerLoaded(asked.inputs, OUTPUTS, 8))

    assert joins.specs == hints
    assert joins.to_model["x"].shape("x", (1, 3)) == apart.to_model["x"].shape("x", (1, 3)) == (1, 1, 3)


def test_without_reshape_no_shape_is_checked() -> None:
    assert not is_reshaped(load(Spec("x", "FP32", [4])))
