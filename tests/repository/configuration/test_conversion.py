"""A configuration written as config.pbtxt or model.toml and read back is the same message."""

from __future__ import annotations

import pytest

from backline.repository.configuration import text, toml
from backline.repository.configuration.document import Document
from backline_client.values.errors import InvalidArgument
from repository.configuration.cases import REFUSED, TAKEN


def _parses(written: str) -> bool:
    try:
        text.parse(written, "config.pbtxt")
    except InvalidArgument:
        return False
    return True


_WRITTEN = {name: written for name, written in {**TAKEN, **REFUSED}.items() if _parses(written)} | {
    "zero_batch": "max_batch_size: 0",
    "settings": "".join(
        f'parameters {{ key: "backline.{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in {
            "lane": "thread",
            "pinned": "true",
            "labels.stable": "2",
            "labels.a b.c": "1",
            "versions": "1,1.4.2",
        }.items()
    ),
    "text": 'parameters { key: "a \\" \\n \\177 é" value { string_value: "\\t\\\\ \\303\\251" } }',
    "ensemble": 'ensemble_scheduling { step [ { model_name: "a" model_version: -1'
    ' input_map { key: "x" value: "y" } } ] }',
    "cuda_graphs": "optimization { cuda { graphs: true graph_spec { batch_size: 1"
    ' input { key: "x" value { dim: [ 1, 2 ] } } } } }',
}


def _same(one: Document, other: Document) -> bool:
    return one.message == other.message and ("max_batch_size" in one.places) == (
        "max_batch_size" in other.places
    )


@pytest.mark.parametrize("name", _WRITTEN)
def test_a_message_written_as_toml_is_read_back_unchanged(name: str) -> None:
    document = text.parse(_WRITTEN[name], "config.pbtxt")

    assert _same(toml.parse(toml.render(document), "model.toml"), document)


@pytest.mark.parametrize("name", _WRITTEN)
def test_a_message_written_as_text_is_read_back_unchanged(name: str) -> None:
    document = text.parse(_WRITTEN[name], "config.pbtxt")

    assert _same(text.parse(text.render(document), "config.pbtxt"), document)


def test_the_toml_form_is_easy_to_read() -> None:
    document = text.parse(
        """
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 4, -1 ] reshape { shape: [ -1, 4 ] } } ]
        version_policy { latest { num_versions: 2 } }
        instance_group [ { count: 2 kind: KIND_CPU } ]
        dynamic_batching { default_queue_policy { max_queue_size: 16 } }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
        parameters { key: "backline.lane" value { string_value: "thread" } }
        parameters { key: "backline.labels.stable" value { string_value: "2" } }
        """,
        "config.pbtxt",
    )

    assert (
        toml.render(document)
        == """\
max_batch_size = 8
lane = "thread"
labels = { stable = "2" }

[version_policy]
latest = 2

[[input]]
name = "x"
data_type = "FP32"
dims = [4, -1]
reshape = [-1, 4]

[[instance_group]]
kind = "KIND_CPU"
count = 2

[dynamic_batching]
default_queue_policy = { max_queue_size = 16 }

[parameters]
intra_op_thread_count = "2"
"""
    )
