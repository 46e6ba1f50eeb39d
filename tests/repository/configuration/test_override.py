"""The configuration in a load request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import ModelConfig
from backline.repository.configuration.override import read_override
from backline.repository.listing import FileEntry, Listing
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec

FOLDER = Listing("m", {"labels.txt": FileEntry(8, "")}, frozenset(), lambda _: b"cat\ndog\n")

_STARTS = ("load parameter 'config':", "Invalid config override:")


def override(document: object) -> ModelConfig:
    return read_override(document if isinstance(document, str) else json.dumps(document), "m", FOLDER)


@pytest.mark.parametrize(
    "names",
    [("max_batch_size", "data_type", "label_filename"), ("maxBatchSize", "dataType", "labelFilename")],
)
def test_both_forms_of_names_and_numbers_are_read(names: tuple[str, str, str]) -> None:
    limit, kind, labels = names

    config = override(
        {
            limit: "4",
            "output": [{"name": "y", kind: "TYPE_FP32", "dims": ["2"], labels: "labels.txt"}],
            "platform": None,
        }
    )

    assert config.max_batch_size == 4
    assert config.outputs == (TensorSpec("y", DataType.FP32, (2,), labels=("cat", "dog")),)


def test_a_configuration_shown_by_the_server_can_be_sent_back() -> None:
    shown = {
        "name": "m",
        "max_batch_size": 0,
        "parameters": {
            "backline.scheduling": {"string_value": "how"},
            "backline.placement": {"string_value": "why"},
            "a": {"string_value": "b"},
        },
    }

    assert override(shown).parameters == {"a": "b"}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"max_batch_sise": 4}, "unknown field 'max_batch_sise', did you mean 'max_batch_size'?"),
        ({"a\n\x1b[1m": 4}, "unknown field 'a\\n\\x1b[1m'; expected one of name,"),
        ({"maxBatchSiz": 4}, "unknown field 'maxBatchSiz', did you mean 'max_batch_size'?"),
        ({"input": [{"name": "x"}, {"dimms": 3}]}, "input[1]: unknown field 'dimms', did you mean 'dims'?"),
        ({"input": [{"dims": ["x"]}]}, "input[0].dims: 'dims' is 'x', expected a whole number"),
        (
            {"instance_group": [{"kind": "KIND_CPUS"}]},
            "instance_group[0].kind: unknown value 'KIND_CPUS', did you mean 'KIND_CPU'?",
        ),
        (
            {"dynamic_batching": {}, "sequence_batching": {}},
            "'sequence_batching' and 'dynamic_batching' are mutually exclusive",
        ),
        ({"name": "n"}, "unexpected directory name 'm' for model 'n', directory name must equal model name"),
        (
            {"parameters": {"backline.trust_pickle": {"string_value": "true"}}},
            "unknown parameter 'backline.trust_pickle'",
        ),
        ({"trust_pickle": True}, "unknown field 'trust_pickle'"),
        (
            {"output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [2], "label_filename": "../x"}]},
            "must be the name of a file inside",
        ),
        ('{"name": "m", "name": "m"}', "'name' is given more than once"),
        ('{"name": "\\ud800"}', "the text has an escape such as \\ud800, which is not a character"),
        ('{\n"name" "m"}', "2:8: the text is not JSON: Expecting ':' delimiter"),
        ("[" * 100_000, "is nested too deep"),
        ("null", "expected an object with the fields of a model configuration, not null"),
    ],
)
def test_errors_name_the_field(document: object, reason: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        override(document)

    assert raised.value.message.startswith(_STARTS)
    assert reason in raised.value.message


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["TYPE_FP32", "4"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5)
            | st.sampled_from(
                ["name", "input", "dims", "parameters", "dynamic_batching", "labels", "versions"]
            ),
            inner,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            ["input", "parameters", "version_policy", "model_warmup", "labels", "max_batch_size"]
        ),
        _VALUES,
    )
)
def test_any_json_is_read_or_refused_in_one_line(document: dict[str, object]) -> None:
    try:
        outcome = override(document).name
    except InvalidArgument as refused:
        outcome = (
            "m" if refused.message.startswith(_STARTS) and "\n" not in refused.message else refused.message
        )

    assert outcome == "m"
