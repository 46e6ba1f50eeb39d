"""docs/shapes.md: its configurations parse, its model answers, and its tables list every key and kind."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.repository import configuration
from backline.repository.configuration import native
from backline.repository.listing import FileEntry, Listing
from backline_client.protos import message
from docs.pages import Block, blocks, code, table

PAGE = "docs/shapes.md"
FILES = {"protobuf": "config.pbtxt", "toml": "model.toml"}


@pytest.mark.parametrize(
    "block",
    [block for block in blocks(PAGE) if block.language in FILES],
    ids=lambda block: f"line {block.line}",
)
def test_the_configurations_are_read_without_warnings(block: Block) -> None:
    file = FILES[block.language]
    listing = Listing("m", {file: FileEntry(0, "")}, frozenset(), {file: block.text.encode()}.__getitem__)

    config = configuration.read(listing, "m")

    assert config is not None
    assert config.joining is not None or config.split_large_batches
    assert config.warnings == ()


def test_the_python_model_answers(tmp_path: Path) -> None:
    (model,) = (block.text for block in blocks(PAGE) if block.language == "python")
    (place,) = re.findall(r"# (models/.*)", model)
    file = tmp_path / place
    file.parent.mkdir(parents=True)
    file.write_text(model)
    config = (
        "batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO "
        'target_name: "bounds" data_type: TYPE_INT32 source_input: "x" }'
    )
    ragged = (
        'max_batch_size: 16 input { name: "x" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }'
    )
    (file.parent.parent / "config.pbtxt").write_text(f"{ragged} {config}")

    with backline.connect(f"inproc://{tmp_path / 'models'}") as client:
        assert client["sums"](np.array([[1, 2, 3]], np.float32))["output"].tolist() == [[6]]


@pytest.mark.parametrize("setting", ["padding", "cut"])
def test_every_key_is_listed(setting: str) -> None:
    column = f"key of `{setting}.{'INPUT' if setting == 'padding' else 'OUTPUT'}`"
    listed = {key for row in table(PAGE, column) for key in code(row[column])}

    assert listed == {field.name for field in native.SETTINGS[setting].fields}


def test_every_kind_of_batch_input_is_listed() -> None:
    kinds = message("inference.BatchInput").DESCRIPTOR.fields_by_name["kind"].enum_type.values_by_name

    assert {code(row["kind of `batch_input`"])[0] for row in table(PAGE, "kind of `batch_input`")} == set(
        kinds
    )
