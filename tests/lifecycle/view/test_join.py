"""Loading models whose requests are joined by rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from backline.engine.config.joining import Cut, Joining, JoiningCheck, Padding
from backline.engine.config.model_config import ModelConfig
from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline.lifecycle.loading.loaded_here import LoadedHere
from backline.lifecycle.loading.loader import load
from backline.lifecycle.loading.queueing import settings_of
from backline.lifecycle.options import LifecycleOptions
from backline.lifecycle.view.join import JoinRequests
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor
from support import models

FLOAT = TensorProto.FLOAT


def loaded(path: Path, joining: Joining, **settings: object) -> LoadedHere:
    given: Any = {"max_batch_size": 8, "joining": joining, "source": "model.toml", **settings}
    found = load(path, ModelConfig("m", **given))
    assert isinstance(found, LoadedHere)
    return found


def doubler(folder: Path) -> Path:
    """y = 2 x over [N, T, F], both of which vary."""
    nodes = [helper.make_node("Add", ["x", "x"], ["y"])]
    return models.save(
        folder / "model.onnx", nodes, [("x", FLOAT, ["N", "T", "F"])], [("y", FLOAT, ["N", "T", "F"])]
    )


def test_joining_is_proved_by_equal_answers(tmp_path: Path) -> None:
    found = loaded(doubler(tmp_path), Joining(padding={"x": Padding(axes=(1,))}, cuts={"y": Cut("x")}))

    assert found.warnings == ()
    assert (
        "requests of different lengths gave the same outputs together as alone (4 requests)" in found.reason
    )


def test_an_output_that_is_not_cut_is_a_warning_with_both_shapes(tmp_path: Path) -> None:
    found = loaded(doubler(tmp_path), Joining(padding={"x": Padding(axes=(1,))}))

    assert (
        "output 'y' of a request has shape [1, 3, 4] alone, but [1, 4, 4] together with others"
        in found.warnings[0]
    )


def test_a_wrong_window_is_a_warning(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["x", "one"], ["u"]),
        helper.make_node("MaxPool", ["u"], ["y"], kernel_shape=[3], strides=[2]),
    ]
    one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
    path = models.save(
        tmp_path / "model.onnx", nodes, [("x", FLOAT, ["N", "T"])], [("y", FLOAT, ["N", 1, "F"])], [one]
    )

    right = loaded(
        path, Joining(padding={"x": Padding(buckets=(32,))}, cuts={"y": Cut("x", axis=2, hop=2, window=3)})
    )
    wrong = loaded(
        path, Joining(padding={"x": Padding(buckets=(32,))}, cuts={"y": Cut("x", axis=2, hop=2, window=1)})
    )

    assert right.warnings == ()
    assert "joining requests changes outputs" in wrong.warnings[0]


@pytest.mark.parametrize(
    ("settings", "passed_over"),
    [({}, True), ({"preserve_ordering": True}, False), ({"objective_seconds": 0.1}, False)],
)
def test_requests_of_other_lengths_are_passed_over_unless_the_order_is_another_ones(
    tmp_path: Path, settings: dict[str, object], passed_over: bool
) -> None:
    config = ModelConfig(
        "m", max_batch_size=8, joining=Joining(padding={"x": Padding(axes=(1,))}), **settings
    )  # type: ignore[arg-type]

    assert (
        settings_of(config, load(doubler(tmp_path), config), LifecycleOptions()).batch.reach > 0
    ) is passed_over


def test_a_ragged_input_of_another_shape_is_refused_in_tritons_words(tmp_path: Path) -> None:
    inputs = (TensorSpec("x", DataType.FP32, (-1, -1)),)

    expected = (
        r"configuration expects model provides input with shape \[-1\] for ragged input 'x', model provides"
        r" \[-1, -1, -1\]"
    )
    with pytest.raises(InvalidArgument, match=expected):
        loaded(doubler(tmp_path), Joining(ragged=("x",)), inputs=inputs)


def one_length(folder: Path) -> Path:
    """The running sum of x over [N, 6]; other lengths fail."""
    axis = helper.make_tensor("axis", TensorProto.INT32, [], [1])
    nodes = [helper.make_node("CumSum", ["x", "axis"], ["y"])]
    return models.save(
        folder / "model.onnx", nodes, [("x", FLOAT, ["N", 6])], [("y", FLOAT, ["N", 6])], [axis]
    )


def test_a_model_of_one_length_takes_shorter_inputs(tmp_path: Path) -> None:
    joining = Joining(padding={"x": Padding(axes=(1,))}, cuts={"y": Cut("x")})
    found = loaded(one_length(tmp_path), joining)
    assert found.joining is not None

    requests = [{"x": np.ones((1, length), np.float32)} for length in (2, 6)]
    answers = found.view.stage(JoinRequests).run_together(found.model.run, requests, ["y"])

    assert [answer[0].tolist() for answer in answers] == [[[1, 2]], [[1, 2, 3, 4, 5, 6]]]
    assert found.signature.inputs[0].shape == found.signature.outputs[0].shape == (-1, -1)
    assert found.warnings == ()


def test_a_model_of_one_length_takes_no_longer_ones(tmp_path: Path) -> None:
    found = loaded(one_length(tmp_path), Joining(padding={"x": Padding(axes=(1,))}))
    assert found.joining is not None
    check = JoiningCheck(RequestCheck("m", found.signature, 8, strict=True), found.joining, ("x",))
    data = np.zeros((1, 7), np.float32)

    with pytest.raises(
        InvalidArgument,
        match=r"input 'x' of model 'm' has shape \[1, 7\], but it may have at most 6 in dimension 1",
    ):
        check(Ticket(InferRequest("m", {"x": Tensor("x", DataType.FP32, data.shape, data)}), lambda *_: None))


@pytest.mark.parametrize("padding", [Padding(), Padding(axes=(1,), buckets=(4, 6)), Padding(axes=(2,))])
def test_a_model_of_one_length_has_no_others_to_choose_from(tmp_path: Path, padding: Padding) -> None:
    with pytest.raises(InvalidArgument, match="only the batch dimension varies"):
        loaded(one_length(tmp_path), Joining(padding={"x": padding}))
