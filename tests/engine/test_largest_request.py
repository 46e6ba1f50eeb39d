"""No client writes a request that is larger than `largest_request` says."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest
from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig
from backline.engine.largest_request import (
    ALLOWANCE,
    json_size,
    largest_request,
    largest_request_to,
    protobuf_size,
)
from backline.engine.model import Model, ModelState
from backline_client.protos import message
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature, TensorSpec

#: The numbers of FP64 and INT64 that take the most characters and bytes.
LONGEST, LEAST = -2.2250738585072014e-308, -(2**63)
ROW = Signature((TensorSpec("x", DataType.FP64, (-1, 16)),), (TensorSpec("y", DataType.FP64, (-1, 16)),))


def model(*dims: int, max_batch_size: int | None = None, state: ModelState = ModelState.READY) -> Model:
    """A version of a model with one input of FP32; the first of `dims` is the batch, if there is one."""
    made = Model("m", "1", ModelConfig("m", max_batch_size=max_batch_size), state)
    spec = TensorSpec("x", DataType.FP32, dims)
    made.signature, made.max_batch_size = Signature((spec,), (spec,)), max_batch_size or 0
    return made


@pytest.mark.parametrize("shape", [(), (5000,), (1, 1, 1, 5000), (5000, 1, 1, 1), (2, 3, 5, 7, 11)])
def test_the_longest_numbers_in_indented_json_fit(shape: tuple[int, ...]) -> None:
    data = np.full(shape, LONGEST).tolist()
    tensor = {"name": "x", "shape": shape, "datatype": "FP64", "data": data}
    written = json.dumps({"inputs": [tensor], "parameters": {}}, indent=4)
    assert len(written) <= json_size(shape) + 1024


def test_every_other_form_is_smaller_than_json() -> None:
    data = np.full((100, 50), LONGEST)
    for form in (data.tobytes(), data.tobytes().hex(), base64.b64encode(data.tobytes())):
        assert len(form) <= json_size(data.shape)


def test_the_longest_numbers_in_typed_contents_fit() -> None:
    numbers = [LEAST] * 5000
    tensor = {"name": "x", "datatype": "INT64", "shape": [5000], "contents": {"int64_contents": numbers}}
    asked = message("inference.ModelInferRequest")(model_name="m", inputs=[tensor])
    assert len(asked.SerializeToString()) <= protobuf_size((5000,)) + 1024


def test_the_size_grows_with_the_batch_and_the_inputs() -> None:
    one, eight = (largest_request(ROW, items, protobuf_size) for items in (1, 8))
    assert one is not None
    assert eight is not None
    assert eight - one == 7 * 16 * 16
    two = replace(ROW, inputs=(*ROW.inputs, TensorSpec("z", DataType.BOOL, (-1, 4), optional=True)))
    both = largest_request(two, 8, protobuf_size)
    assert both is not None
    assert both >= eight + 8 * 4 * 16
    assert one > ALLOWANCE


@pytest.mark.parametrize(
    ("spec", "items"),
    [
        (TensorSpec("x", DataType.FP32, (-1, 16)), None),
        (TensorSpec("x", DataType.FP32, (-1, 16)), 0),
        (TensorSpec("x", DataType.FP32, (-1, -1)), 8),
        (TensorSpec("x", DataType.BYTES, (-1, 1)), 8),
        (TensorSpec("x", DataType.BYTES, (1,)), 0),
    ],
    ids=["any-batch", "variable", "variable-in-a-batch", "bytes-in-a-batch", "bytes"],
)
def test_variable_inputs_have_no_largest_request(spec: TensorSpec, items: int | None) -> None:
    assert largest_request(Signature((spec,), ()), items, json_size) is None


def test_the_largest_version_decides() -> None:
    small, large = model(16), model(64)
    size = largest_request_to([small, large], json_size)
    assert size is not None
    assert size == largest_request_to([large], json_size)
    assert size == largest_request_to([large, model(-1, state=ModelState.UNAVAILABLE)], json_size)
    assert size == largest_request_to([small, model(64, state=ModelState.UNLOADING)], json_size)


def test_versions_whose_inputs_are_unknown_have_no_largest_request() -> None:
    assert largest_request_to([model(16), model(16, state=ModelState.LOADING)], json_size) is None
    asleep = model(16, state=ModelState.ON_DEMAND)
    asleep.on_demand = True
    assert largest_request_to([asleep], json_size) is None
    assert largest_request_to([model(16, state=ModelState.UNAVAILABLE)], json_size) is None


def test_only_a_configured_batch_size_is_a_maximum() -> None:
    """A measured one is not: larger requests run as well."""
    assert largest_request_to([model(-1, 16, max_batch_size=8)], json_size) is not None
    measured = model(-1, 16)
    measured.max_batch_size = 8
    assert largest_request_to([measured], json_size) is None
    parts = model(-1, 16, max_batch_size=8)
    parts.config = replace(parts.config, split_large_batches=True)
    assert largest_request_to([parts], json_size) is None
