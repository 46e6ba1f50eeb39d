"""Loading models whose clients see other shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from backline.backends.backend import LoadedModel
from backline.engine.config.joining import BatchInput, Joining
from backline.engine.config.model_config import ModelConfig
from backline.engine.ticket import Ticket
from backline.lifecycle.loading.loaded import LoadedStreams, LoadedVersion
from backline.lifecycle.loading.loaded_here import LoadedHere
from backline.lifecycle.loading.loader import load
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.stage import StagedModel
from backline.workers.batch import Batch
from backline.workers.here.execution import Execution
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape, Tensor
from support import models
from support.networks import looping

FLOAT, INT = TensorProto.FLOAT, TensorProto.INT32


def spec(name: str, shape: Shape, reshape: Shape | None = None) -> TensorSpec:
    return TensorSpec(name, DataType.FP32, shape, reshape=reshape)


def doubled(
    path: Path, shape: list[int | str], inputs: TensorSpec, outputs: TensorSpec, **settings: object
) -> LoadedVersion:
    models.save(
        path / "model.onnx",
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", FLOAT, shape)],
        [("y", FLOAT, shape)],
    )
    config = ModelConfig(
        "m", inputs=(inputs,), outputs=(outputs,), source="config.pbtxt", **{"max_batch_size": 8, **settings}
    )  # type: ignore[arg-type]
    return load(path / "model.onnx", config)


def model(loaded: LoadedVersion) -> LoadedModel:
    assert isinstance(loaded, LoadedHere)
    return loaded.model


def test_probes_and_runs_use_the_shapes_of_clients(tmp_path: Path) -> None:
    loaded = doubled(tmp_path, ["N", 2, "T"], spec("x", (-1, 2), (2, -1)), spec("y", (1, 2, -1), (2, -1)))

    assert [spec.shape for spec in (*loaded.signature.inputs, *loaded.signature.outputs)] == [
        (-1, -1, 2),
        (-1, 1, 2, -1),
    ]
    assert "max_batch_size of the configuration is 8" in loaded.reason
    assert loaded.warnings == ()
    answers = model(loaded).run({"x": np.arange(12, dtype=np.float32).reshape(2, 3, 2)}, ["y", "y"])
    assert len(answers) == 2
    for answer in answers:  # a request may ask for an output twice
        np.testing.assert_array_equal(answer, np.arange(0, 24, 2, dtype=np.float32).reshape(2, 1, 2, 3))


def test_a_dimension_that_the_file_fixes_is_fixed_for_clients(tmp_path: Path) -> None:
    loaded = doubled(tmp_path, ["N", 2, 1, 7], spec("x", (2, -1), (2, 1, -1)), spec("y", (2, -1), (2, 1, -1)))
    assert [spec.shape for spec in (*loaded.signature.inputs, *loaded.signature.outputs)] == [
        (-1, 2, 7),
        (-1, 2, 7),
    ]


def test_the_reshape_must_agree_with_the_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument) as refused:
        doubled(tmp_path, ["N", 4], spec("x", (4,), (2, 2)), spec("y", (4,)))
    assert refused.value.message == (
        "model 'm': input 'x' has the reshape [-1, 2, 2] (with the batch dimension, as max_batch_size is"
        f" above 0) in config.pbtxt, but [-1, 4] in '{tmp_path / 'model.onnx'}'"
    )
    with pytest.raises(
        InvalidArgument, match=r"output 'y' has the reshape \[4, 1\] in config.pbtxt, but \[2, 2\]"
    ):
        doubled(tmp_path, [2, 2], spec("x", (4,), (2, 2)), spec("y", (4,), (4, 1)), max_batch_size=0)


def test_a_moved_batch_axis_is_first_in_the_reshape(tmp_path: Path) -> None:
    loaded = doubled(
        tmp_path, [2, "N", 2], spec("x", (4,), (2, 2)), spec("y", (4,), (2, 2)), batch_axes={"x": 1, "y": 1}
    )

    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_array_equal(model(loaded).run({"x": given}, ["y"])[0], given * 2)


def test_a_model_without_reshapes_is_not_wrapped(tmp_path: Path) -> None:
    loaded = doubled(tmp_path, ["N", 4], spec("x", (4,)), spec("y", (4,)))
    assert not isinstance(model(loaded), StagedModel)


def test_a_run_can_still_be_cancelled(tmp_path: Path) -> None:
    looping(tmp_path / "model.onnx")
    config = ModelConfig(
        "m",
        max_batch_size=8,
        inputs=(spec("X", (1,), ()), TensorSpec("ROUNDS", DataType.INT64, (1,), reshape=())),
    )
    loaded = model(load(tmp_path / "model.onnx", config))

    assert isinstance(loaded, StagedModel)
    run, _ = loaded.cancellable()
    (answer,) = run({"X": np.ones((2, 1), np.float32), "ROUNDS": np.ones((2, 1), np.int64)}, ["Y"])
    assert answer.tolist() == [-1, -1]
    run, cancel = loaded.cancellable()
    cancel()
    with pytest.raises(BacklineError):
        run({"X": np.ones((2, 1), np.float32), "ROUNDS": np.full((2, 1), 2**40, np.int64)}, ["Y"])


def test_the_responses_of_a_stream_are_reshaped(tmp_path: Path) -> None:
    def waiting(name: str, *shape: int) -> TensorSpec:
        return TensorSpec(name, DataType.UINT32, shape)

    config = ModelConfig(
        "m",
        backend="repeat",
        max_batch_size=0,
        decoupled=True,
        inputs=(
            TensorSpec("IN", DataType.INT32, (1, -1), reshape=(-1,)),
            waiting("DELAY", -1),
            waiting("WAIT", 1),
        ),
        outputs=(
            TensorSpec("OUT", DataType.INT32, (1, 1), reshape=(1,)),
            TensorSpec("IDX", DataType.UINT32, (1,)),
        ),
    )
    loaded = load(tmp_path, config)

    assert isinstance(loaded, LoadedStreams)
    assert [spec.shape for spec in (loaded.signature.inputs[0], *loaded.signature.outputs)] == [
        (1, -1),
        (1, 1),
        (1,),
    ]
    inputs = {
        "IN": np.array([[4, 5]], np.int32),
        "DELAY": np.zeros(2, np.uint32),
        "WAIT": np.zeros(1, np.uint32),
    }
    responses = list(loaded.model.stream(inputs, ["OUT", "IDX"], {}))
    assert [response["OUT"].tolist() for response in responses] == [[[4]], [[5]]]


def test_batch_inputs_describe_ragged_inputs_in_their_reshaped_form(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("Identity", ["shapes"], ["s"])]
    models.save(
        tmp_path / "model.onnx",
        nodes,
        [("x", FLOAT, ["T"]), ("shapes", INT, ["N", 2])],
        [("y", FLOAT, ["T"]), ("s", INT, ["N", 2])],
    )
    joining = Joining(("x",), (BatchInput("BATCH_ITEM_SHAPE", ("shapes",), DataType.INT32, "x"),), {"y": "x"})
    loaded = load(
        tmp_path / "model.onnx",
        ModelConfig(
            "m",
            max_batch_size=8,
            inputs=(spec("x", (-1,), (1, -1)),),
            outputs=(spec("y", (-1,), (1, -1)), TensorSpec("s", DataType.INT32, (2,))),
            joining=joining,
        ),
    )
    execution = Execution("m", "1", model(loaded), joiner=loaded.view.stage(JoinRequests).joiner)
    arrays = [np.ones((1, 3), np.float32), np.full((1, 2), 5, np.float32)]
    batch = Batch(
        [
            Ticket(InferRequest("m", {"x": Tensor("x", DataType.FP32, a.shape, a)}), lambda *_: None)
            for a in arrays
        ],
        2,
        0,
    )

    execution(batch)

    answers = [
        {tensor.name: tensor.data.tolist() for tensor in response.outputs} for response in batch.outcomes
    ]  # type: ignore[union-attr]
    assert answers == [{"y": [[2, 2, 2]], "s": [[1, 3]]}, {"y": [[10, 10]], "s": [[1, 2]]}]
