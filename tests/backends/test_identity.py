"""Triton's identity backend: inputs are returned, after a configured delay."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from backends.loading import load
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor
from support.embedded import start

IN = TensorSpec("IN", DataType.FP32, (4,))
OUT = TensorSpec("OUT", DataType.FP32, (4,))


def test_each_output_is_the_input_at_its_position(tmp_path: Path) -> None:
    words = TensorSpec("WORDS", DataType.BYTES, (-1,))
    model = load(
        tmp_path,
        backend="identity",
        max_batch_size=8,
        inputs=(IN, words),
        outputs=(OUT, TensorSpec("W", DataType.BYTES, (-1,))),
    )
    inputs = {"IN": np.ones((2, 4), np.float32), "WORDS": np.array([[b"a"], [b"b"]], object)}

    answers = model.run(inputs, ["W", "OUT"])

    assert answers[0] is inputs["WORDS"]
    assert answers[1] is inputs["IN"]
    assert model.signature.inputs[0].shape == (-1, 4)


def test_a_delay_is_in_milliseconds(tmp_path: Path) -> None:
    model = load(
        tmp_path, backend="identity", inputs=(IN,), outputs=(OUT,), parameters={"execute_delay_ms": "30"}
    )
    started = time.monotonic()

    model.run({"IN": np.ones(4, np.float32)}, ["OUT"])

    assert time.monotonic() - started >= 0.03


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"inputs": (IN,)}, "names 1 inputs and 0 outputs"),
        (
            {"inputs": (IN,), "outputs": (TensorSpec("OUT", DataType.FP32, (3,)),)},
            "so both need the same datatype and dims",
        ),
        (
            {"inputs": (IN,), "outputs": (OUT,), "parameters": {"execute_delay_ms": "soon"}},
            "is 'soon', expected milliseconds",
        ),
    ],
    ids=["count", "shape", "delay"],
)
def test_impossible_settings_are_refused(fields: dict[str, object], reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        load(tmp_path, backend="identity", **fields)


def test_an_absent_input_gives_zeros(tmp_path: Path) -> None:
    model = load(
        tmp_path,
        backend="identity",
        max_batch_size=8,
        inputs=(IN, TensorSpec("A", DataType.FP32, (4,), True), TensorSpec("B", DataType.BYTES, (-1,), True)),
        outputs=(OUT, TensorSpec("X", DataType.FP32, (4,)), TensorSpec("Y", DataType.BYTES, (-1,))),
    )

    _, numbers, words = model.run({"IN": np.ones((2, 4), np.float32)}, ["OUT", "X", "Y"])

    assert (numbers.tolist(), words.tolist()) == ([[0] * 4] * 2, [[b""]] * 2)


def test_a_model_without_tensors_loads(tmp_path: Path) -> None:
    assert load(tmp_path, backend="identity").run({}, []) == []


def test_a_load_takes_the_creation_delay(tmp_path: Path) -> None:
    started = time.monotonic()

    load(tmp_path, backend="identity", inputs=(IN,), outputs=(OUT,), parameters={"creation_delay_sec": "1"})

    assert time.monotonic() - started >= 1


async def test_ragged_requests_of_a_batch_get_their_own_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "ragged"
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(
        'backend: "identity" max_batch_size: 8 dynamic_batching { max_queue_delay_microseconds: 500000 }'
        'input [ { name: "IN" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true } ]'
        'output [ { name: "OUT" data_type: TYPE_FP32 dims: [ -1 ] } ]'
        'parameters { key: "execute_delay_ms" value: { string_value: "1" } }'
    )
    program = await start(tmp_path / "models")
    values = [np.arange(size, dtype=np.float32)[None] for size in (1, 3, 2)]

    responses = await asyncio.gather(
        *(
            program.engine.infer(InferRequest("ragged", {"IN": Tensor("IN", DataType.FP32, one.shape, one)}))
            for one in values
        )
    )

    statistics = program.engine.find("ragged").statistics
    assert [response.outputs[0].data.tolist() for response in responses] == [one.tolist() for one in values]
    assert statistics.execution_count < 3
    await program.stop()


RAGGED = """
backend: "identity" max_batch_size: 8
input [
  { name: "R" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true optional: true },
  { name: "O" data_type: TYPE_FP32 dims: [ 2 ] optional: true },
  { name: "P" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true optional: true }
]
output [
  { name: "R_OUT" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "O_OUT" data_type: TYPE_FP32 dims: [ 2 ] },
  { name: "P_OUT" data_type: TYPE_FP32 dims: [ -1 ] }
]
dynamic_batching { max_queue_delay_microseconds: 50000 }
"""


async def test_absent_inputs_beside_ragged_inputs_are_zeros(tmp_path: Path) -> None:
    (tmp_path / "models" / "m" / "1").mkdir(parents=True)
    (tmp_path / "models" / "m" / "config.pbtxt").write_text(RAGGED)
    program = await start(tmp_path / "models")

    async def ask(**inputs: list[list[float]]) -> list[list[list[float]]]:
        tensors = {
            name: Tensor(name, DataType.FP32, np.shape(rows), np.array(rows, np.float32))
            for name, rows in inputs.items()
        }
        response = await program.engine.infer(InferRequest("m", tensors))
        return [output.data.tolist() for output in response.outputs]

    ragged = await asyncio.gather(ask(R=[[1, 2, 3]]), ask(R=[[4]]), ask(R=[[5, 6], [7, 8]]))
    others = await asyncio.gather(ask(O=[[1, 2]]), ask(O=[[3, 4], [5, 6]]))
    await program.stop()

    assert ragged == [
        [[[1, 2, 3]], [[0, 0]], [[0]]],
        [[[4]], [[0, 0]], [[0]]],
        [[[5, 6], [7, 8]], [[0, 0], [0, 0]], [[0], [0]]],
    ]
    assert others == [[[[0]], [[1, 2]], [[0]]], [[[0], [0]], [[3, 4], [5, 6]], [[0], [0]]]]
