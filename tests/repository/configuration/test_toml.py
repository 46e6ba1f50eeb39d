"""model.toml: how its plain form is read, and how errors point to their place."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.engine.config.model_config import ModelConfig, VersionPolicy
from backline.repository.configuration import read
from backline.repository.listing import FileEntry, Listing
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import TensorSpec


def config(text: str) -> ModelConfig:
    listing = Listing(
        "m",
        {"model.toml": FileEntry(len(text), "")},
        frozenset(),
        lambda _: text.encode("utf-8", "surrogatepass"),
    )
    found = read(listing, "m")
    assert found is not None
    return found


def error(text: str) -> str:
    with pytest.raises(InvalidArgument) as raised:
        config(text)
    assert raised.value.message.startswith("m/model.toml:")
    return raised.value.message.removeprefix("m/model.toml:")


def test_a_full_configuration_is_read() -> None:
    read_config = config(
        """
        max_batch_size = 8
        default_model_filename = "net.onnx"
        lane = "thread"
        versions = ["1.4.2", "git-3fa9c1", 3]
        labels = { stable = "1.4.2", canary = 3 }
        pinned = true
        load = "on_demand"
        idle_unload_seconds = 300
        load_retries = 2
        dynamic_batching.preferred_batch_size = [4, 8]
        dynamic_batching.default_queue_policy.max_queue_size = 16

        [[input]]
        name = "x"
        data_type = "FP32"
        dims = [3, -1]

        [[input]]  # a text
        name = "s"
        data_type = "TYPE_STRING"
        dims = [1]

        [output]
        name = "y"
        data_type = "BF16"
        dims = 2

        [instance_group]
        count = 2

        [parameters]
        intra_op_thread_count = 2
        "optimization.level" = "all"
        """
    )

    assert read_config.inputs == (
        TensorSpec("x", DataType.FP32, (3, -1)),
        TensorSpec("s", DataType.BYTES, (1,)),
    )
    assert read_config.outputs == (TensorSpec("y", DataType.BF16, (2,)),)
    assert read_config.version_policy == VersionPolicy(latest=None, specific=("1.4.2", "git-3fa9c1", "3"))
    assert read_config.labels == {"stable": "1.4.2", "canary": "3"}
    assert read_config.parameters == {"intra_op_thread_count": "2", "optimization.level": "all"}
    assert (read_config.max_batch_size, read_config.instance_count, read_config.lane) == (8, 2, "thread")
    assert (
        read_config.pinned,
        read_config.on_demand,
        read_config.idle_unload_seconds,
        read_config.load_retries,
    ) == (True, True, 300, 2)
    assert (read_config.preferred_batch_sizes, read_config.queue_policy.max_size) == ((4, 8), 16)
    assert read_config.default_model_filename == "net.onnx"
    assert read_config.source == "m/model.toml"
    assert read_config.warnings == (
        "model.toml of 'm': idle_unload_seconds has no effect: the model is pinned and stays loaded",
    )


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("version_policy.latest = 3", VersionPolicy(latest=3)),
        ("version_policy = { latest = { num_versions = 3 } }", VersionPolicy(latest=3)),
        ("version_policy.specific = [1, 7]", VersionPolicy(latest=None, specific=("1", "7"))),
        ("version_policy.all = true", VersionPolicy(latest=None)),
        ("[version_policy.all]", VersionPolicy(latest=None)),
    ],
)
def test_a_section_with_one_field_may_be_written_as_its_value(text: str, policy: VersionPolicy) -> None:
    assert config(text).version_policy == policy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_size = 3\nmax_batch_sise = 3",
            "2:1: unknown key 'max_batch_sise', did you mean 'max_batch_size'?",
        ),
        ("pined = true", "1:1: unknown key 'pined', did you mean 'pinned'?"),
        (
            "[[input]]\nname = 'x'\n\n[[input]]\n  datatype = 'FP32'",
            "5:3: unknown key 'datatype', did you mean 'data_type'?",
        ),
        ("input = [{ name = 'x' }, { nam = 'y' }]", "1:28: unknown key 'nam', did you mean 'name'?"),
        (
            "[dynamic_batching]\n'preferred_batch_sizes' = 3",
            "2:1: unknown key 'preferred_batch_sizes', did you mean 'preferred_batch_size'?",
        ),
        ("input.data_type = 'FLOAT'", "1:7: unknown value 'FLOAT', did you mean 'TYPE_FP32'?"),
        ("input.data_type = 32", "1:7: expected one of TYPE_INVALID, TYPE_BOOL"),
        ("max_batch_size = '4'", "1:1: 'max_batch_size' is '4', expected a whole number"),
        ("max_batch_size = true", "1:1: 'max_batch_size' is true, expected a whole number"),
        (
            "max_batch_size = 2147483648",
            "1:1: 'max_batch_size' is 2147483648, expected -2147483648 to 2147483647",
        ),
        ("input.dims = [1,\n  2.5]", "2:3: 'dims' is 2.5, expected a whole number"),
        ("input.optional = 1", "1:7: 'optional' is 1, expected true or false"),
        ("name = 3", "1:1: 'name' is 3, expected a string"),
        ("input = 3", "1:1: expected a table with name, data_type, format,"),
        ("parameters = 3", "1:1: expected a table"),
        ("parameters.x = true", "1:12: 'string_value' is true, expected a string"),
        (
            "version_policy.latest = 1\nversion_policy.all = {}",
            "2:16: 'all' and 'latest' are mutually exclusive; give only one of them",
        ),
        ("max_batch_size = ", "1:18: Invalid value"),
        ("a = 1\na = 2", "2:6: Cannot overwrite a value"),
        ("pinned = 'yes'", "1:1: 'pinned' is 'yes', expected true or false"),
        ("lane = 'gpu'", "1:1: parameter 'backline.lane' is 'gpu', expected inline, thread or process"),
        ("labels = 'stable'", "1:1: 'labels' is 'stable', expected a table"),
        ("versions = '1'", "1:1: 'versions' is '1', expected a list"),
        ("versions = []", "1:1: parameter 'backline.versions' is '', expected names of versions"),
        (
            "versions = [1]\nversion_policy.latest = 2",
            "1:1: versions and version_policy contradict each other; give one of them",
        ),
        (
            "idle_unload_seconds = 0",
            "1:1: parameter 'backline.idle_unload_seconds' is '0', expected a number of seconds above 0",
        ),
        (
            "max_batch_size = 4\n[[input]]\nname = 'x'\ndata_type = 'FP32'\ndims = 0",
            "5:1: model input 'x' dimension must be integer >= 1",
        ),
        (
            "parameters.'backline.lan' = 'inline'",
            "1:12: unknown parameter 'backline.lan', did you mean 'backline.lane'?",
        ),
    ],
)
def test_errors_have_line_and_column(text: str, message: str) -> None:
    assert error(text).startswith(message)


_PIECES = [
    "name",
    "input",
    "[input]",
    "[[input]]",
    "dims",
    "labels",
    "lane",
    "=",
    ".",
    "{",
    "}",
    "[",
    "]",
    ",",
    "-1",
    "'m'",
    '"',
    "\n",
    "#",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([*_PIECES, "'''", '"""', "true", "\\"]) | st.text(max_size=3)).map("".join))
def test_any_text_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        outcome = config(text).name
    except BacklineError as refused:
        outcome = (
            "m"
            if refused.message.startswith("m/model.toml:") and "\n" not in refused.message
            else refused.message
        )

    assert outcome == "m"


_ENSEMBLE = """
platform = "ensemble"
max_batch_size = 4
input = { name = "A", data_type = "FP32", dims = [-1] }
output = { name = "B", data_type = "FP32", dims = [-1] }

[[ensemble_scheduling.step]]
model_name = "add1"
model_version = -1
input_map = { INPUT0 = "A" }
output_map = { OUTPUT0 = "B" }
"""


@pytest.mark.parametrize(
    "setting",
    [
        'lane = "thread"',
        "lone_run_threads = 2",
        "cpus = [0]",
        "execution_timeout_seconds = 5",
        "idempotent = false",
        'python = "3.13"',
        "memory_limit_bytes = 1000000000",
        "batch_axis.A = 1",
        "constant_input.A = 1",
    ],
)
def test_a_setting_for_running_models_causes_a_warning_for_an_ensemble(setting: str) -> None:
    name = setting.partition(" ")[0].partition(".")[0]
    why = "an ensemble runs nothing itself; set it for the models of its steps"
    assert config(f"{setting}\n{_ENSEMBLE}").warnings == (f"model.toml of 'm': {name} has no effect: {why}",)


def test_settings_for_loading_models_apply_to_ensembles() -> None:
    given = 'load = "on_demand"\nidle_unload_seconds = 5\nload_retries = 1\ndefault_deadline_seconds = 9\n'
    assert config(given + _ENSEMBLE).warnings == ()


def test_idle_unloading_of_a_pinned_model_causes_a_warning() -> None:
    reason = "idle_unload_seconds has no effect: the model is pinned and stays loaded"
    assert config("pinned = true\nidle_unload_seconds = 5").warnings == (f"model.toml of 'm': {reason}",)
    assert config("pinned = false\nidle_unload_seconds = 5").warnings == ()
