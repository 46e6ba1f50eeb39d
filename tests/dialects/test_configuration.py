"""The configuration that clients see: the file, what the server found and decided, and Triton's defaults."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from backline.dialects.open_inference.configuration import (
    complete,
    describe,
    explained,
    model_configuration,
)
from backline.engine.model import Model, Placement
from backline.repository.configuration import read
from backline.repository.listing import FileEntry, Listing
from backline_client.protos import to_plain
from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature, TensorSpec
from support import models
from support.embedded import start


def loaded(text: str, *, max_batch_size: int = 64) -> Model:
    """A loaded ONNX model x [-1, 4] -> y [-1] with this config.pbtxt."""
    listing = Listing("m", {"config.pbtxt": FileEntry(len(text), "")}, frozenset(), lambda _: text.encode())
    config = read(listing, "m")
    assert config is not None
    model = Model("m", "1", config)
    model.backend, model.platform = "onnxruntime", "onnxruntime_onnx"
    model.signature = Signature(
        (TensorSpec("x", DataType.FP32, (-1, 4)),), (TensorSpec("y", DataType.INT64, (-1,)),)
    )
    model.max_batch_size = max_batch_size
    model.placement = Placement("thread", 3, max_batch_size, "measured")
    model.scheduling = "one by one"
    return model


def configuration(text: str, *, max_batch_size: int = 64) -> Any:
    """The configuration of that model, as it is shown."""
    return to_plain(complete(describe(loaded(text, max_batch_size=max_batch_size))))


def test_empty_file_is_completed_from_the_model_and_the_servers_decisions() -> None:
    config = configuration("")

    assert (config["name"], config["backend"], config["platform"]) == ("m", "onnxruntime", "onnxruntime_onnx")
    assert config["default_model_filename"] == "model.onnx"
    assert config["max_batch_size"] == 64
    assert [(entry["name"], entry["data_type"], entry["dims"]) for entry in config["input"]] == [
        ("x", "TYPE_FP32", [4])
    ]
    assert [(entry["name"], entry["data_type"], entry["dims"]) for entry in config["output"]] == [
        ("y", "TYPE_INT64", [])
    ]
    assert [(group["name"], group["count"], group["kind"]) for group in config["instance_group"]] == [
        ("m", 3, "KIND_CPU")
    ]
    assert config["dynamic_batching"]["preferred_batch_size"] == [64]
    assert config["parameters"] == {}


def test_parameters_explain_how_a_model_runs_on_request() -> None:
    model = loaded("")

    assert to_plain(complete(explained(model, describe(model))))["parameters"] == {
        "backline.lane": {"string_value": "thread"},
        "backline.placement": {"string_value": "measured"},
        "backline.scheduling": {"string_value": "one by one"},
    }


def test_values_in_the_file_are_kept() -> None:
    config = configuration(
        """
        max_batch_size: 8
        input { name: "x" data_type: TYPE_FP32 dims: -1 }
        instance_group { count: 2 name: "mine" }
        response_cache { enable: true }
        default_model_filename: "net.onnx"
        """,
        max_batch_size=8,
    )

    assert config["input"][0]["dims"] == [-1]
    assert config["output"][0]["name"] == "y"
    assert [(group["name"], group["count"]) for group in config["instance_group"]] == [("mine", 2)]
    assert config["response_cache"] == {"enable": True}
    assert config["default_model_filename"] == "net.onnx"
    assert "dynamic_batching" not in config, "nobody asked for it"


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("", {"latest": {"num_versions": 1}}),
        ("version_policy { all { } }", {"all": {}}),
        (
            'parameters { key: "backline.versions" value { string_value: "1.4.2,7" } }',
            {"specific": {"versions": [7]}},
        ),
    ],
)
def test_the_version_policy_is_shown_as_far_as_the_field_can_hold_it(text: str, policy: object) -> None:
    assert configuration(text)["version_policy"] == policy


@pytest.mark.parametrize("configured", ["", "max_batch_size: 8 instance_group { count: 3 }"])
async def test_tritons_defaults_of_onnx_models_are_shown_where_nothing_is_configured(
    tmp_path: Path, configured: str
) -> None:
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / "config.pbtxt").write_text(configured)
    program = await start(tmp_path / "models", onnx_as_triton=True)
    try:
        config = to_plain(model_configuration(program.engine, "add1", ""))
    finally:
        await program.stop()

    batch, count = (8, 3) if configured else (4, 2)
    assert (config["max_batch_size"], config["instance_group"][0]["count"]) == (batch, count)
    assert config["instance_group"][0]["kind"] == "KIND_CPU"
    if not configured:
        assert config["dynamic_batching"]["preferred_batch_size"] == [4]
