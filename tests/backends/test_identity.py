"""Triton's identity backend: inputs are returned, after a configured delay."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from backends.loading import load
from backline.engine.errors import InvalidArgument
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import TensorSpec

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
            "they differ in datatype or dims",
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
