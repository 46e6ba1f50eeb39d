"""How configurations say to join requests of different shapes."""

from __future__ import annotations

import pytest

from backline.engine.config.joining import BatchInput, Cut, Joining, Padding
from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration import read, text, toml
from backline.repository.listing import FileEntry, Listing
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument

TOML = """
max_batch_size = 8
allowed_batch_sizes = [2, 8]
pad_variable_length_inputs = true

[padding.audio]
axis = [1]
value = -0.5
buckets = [100, 200]
lengths = "n"
mask = "m"

[padding."in.put"]
value = "[PAD]"

[cut.frames]
to = "audio"
axis = 2
hop = 10
window = 25
"""
READ = Joining(
    allowed_batch_sizes=(2, 8),
    pad_all=True,
    padding={"audio": Padding((1,), "-0.5", (100, 200), "n", "m"), "in.put": Padding(value="[PAD]")},
    cuts={"frames": Cut("audio", 2, 10, 25)},
)


def config(written: str, file: str = "model.toml") -> ModelConfig:
    listing = Listing("m", {file: FileEntry(0, "")}, frozenset(), {file: written.encode()}.__getitem__)
    found = read(listing, "m")
    assert found is not None
    return found


def test_the_settings_are_read() -> None:
    read_config = config(TOML)

    assert read_config.joining == READ
    assert read_config.warnings == ()


def test_the_settings_are_parameters_in_config_pbtxt() -> None:
    document = toml.parse(TOML, "model.toml")

    assert document.message.parameters["backline.padding.audio.buckets"].string_value == "100,200"
    assert document.message.parameters["backline.padding.in.put.value"].string_value == "[PAD]"
    assert config(text.render(document), "config.pbtxt").joining == READ
    assert toml.parse(toml.render(document), "model.toml").message == document.message


def test_fields_of_triton_are_read() -> None:
    read_config = config(
        """
        max_batch_size: 4
        input { name: "x" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }
        output { name: "y" data_type: TYPE_FP32 dims: -1 }
        batch_input { kind: BATCH_ITEM_SHAPE target_name: [ "a", "b" ]
          data_type: TYPE_INT32 source_input: "x" }
        batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "y" source_input: "x" }
        """,
        "config.pbtxt",
    )

    batch_input = BatchInput("BATCH_ITEM_SHAPE", ("a", "b"), DataType.INT32, "x")
    assert read_config.joining == Joining(ragged=("x",), batch_inputs=(batch_input,), scattered={"y": "x"})
    assert read_config.joining.hidden_inputs == {"a", "b"}
    assert read_config.warnings == ()


@pytest.mark.parametrize(
    "written", ["max_batch_size = 8", "max_batch_size = 8\npad_variable_length_inputs = false"]
)
def test_without_settings_joining_is_none(written: str) -> None:
    assert config(written).joining is None


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "pad_variable_length_inputs = true",
            "1:1: pad_variable_length_inputs is for models that take batches: set max_batch_size for m",
        ),
        (
            "max_batch_size = 8\nallowed_batch_sizes = [2, 4]",
            "2:1: the last of allowed_batch_sizes must be max_batch_size, which is 8",
        ),
        (
            "max_batch_size = 8\nallowed_batch_sizes = [4, 2, 8]",
            "2:1: parameter 'backline.allowed_batch_sizes' is '4,2,8', expected whole numb",
        ),
        ("max_batch_size = 8\npadding = 1", "2:1: 'padding' is 1, expected a table"),
        ("max_batch_size = 8\npadding.x = 1", "2:9: 'padding.x' is 1, expected a table"),
        ("max_batch_size = 8\npadding.x.bucket = [1]", "2:11: unknown key 'bucket', did you mean 'buckets'?"),
        ("max_batch_size = 8\npadding.x.mask = 1", "2:11: 'padding.x.mask' is 1, expected a string"),
        ("max_batch_size = 8\ncut.y.hop = 2", "2:7: cut.y does not name the input whose length decides"),
        (
            "max_batch_size = 8\nsequence_batching.direct = {}\npadding.x.value = 1",
            "3:11: padding cannot be combined with sequence_batching",
        ),
        (
            (
                "sequence_batching.direct = {}\n[[input]]\nname = 'x'\n"
                "data_type = 'FP32'\ndims = [-1]\nallow_ragged_batch = true"
            ),
            (
                "1:1: ragged inputs, batch_input and batch_output cannot be combined with sequence_batching"
                " for m"
            ),
        ),
        (
            "max_batch_size = 8\npadding.z.value = 1\n[[input]]\nname = 'x'\ndata_type = 'FP32'\ndims = [-1]",
            "2:11: padding.z names 'z', which is not an input",
        ),
        (
            (
                "max_batch_size = 8\npadding.x.value = 1\n[[input]]\nname = 'x'\n"
                "data_type = 'FP32'\ndims = [-1]\nallow_ragged_batch = true"
            ),
            "2:11: padding.x names 'x', which is a ragged input of m; use another input",
        ),
    ],
)
def test_contradictions_are_errors_with_their_place(written: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        config(written)

    assert raised.value.message.startswith(f"m/model.toml:{message}")


def test_an_unknown_parameter_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"unknown parameter 'backline.padding.x.bucket', did you mean 'backline.padding.x.buckets'\?",
    ):
        config('parameters { key: "backline.padding.x.bucket" value { string_value: "1" } }', "config.pbtxt")
