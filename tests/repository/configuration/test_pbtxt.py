"""config.pbtxt: how it is read, what causes warnings, and how errors point to their place."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from backline.engine.config.instance_group import InstanceGroup, Resource
from backline.engine.config.model_config import ModelConfig, QueuePolicy, VersionPolicy
from backline.repository.configuration import read
from backline.repository.configuration.document import NOT_READ
from backline.repository.walk import walk
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import TensorSpec

PASSIVE = "passive instance groups have no effect: no backend uses instances that get no requests"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "m").mkdir()
    return tmp_path / "m" / "config.pbtxt"


def config(file: Path, text: str) -> ModelConfig:
    file.write_text(text, "utf-8")
    return read_folder(file)


def read_folder(file: Path) -> ModelConfig:
    found = read(walk(file.parent), "m")
    assert found is not None
    return found


def error(file: Path, text: str) -> str:
    with pytest.raises(InvalidArgument) as raised:
        config(file, text)
    assert raised.value.message.startswith(str(file))
    return raised.value.message.removeprefix(str(file))


def test_a_full_configuration_is_read(file: Path) -> None:
    (file.parent / "labels.txt").write_text("cat\ndög\n", "utf-8")

    read_config = config(
        file,
        """
        name: "m"  # as the folder
        platform: "onnxruntime_onnx"
        backend: "onnxruntime"
        max_batch_size: 8
        input [ { name: "x" data_type: TYPE_FP32 dims: [ 3, -1 ] },
          { name: "s" data_type: TYPE_STRING dims: [ 1 ] optional: true } ]
        output { name: "y" data_type: TYPE_BF16 dims: 2 label_filename: "labels.txt" }
        version_policy { specific { versions: [ 3, 1 ] } }
        instance_group [
          { count: 2 kind: KIND_CPU name: "a" },
          { kind: KIND_GPU count: 2 gpus: [ 0, 3 ] },
          { kind: KIND_MODEL passive: true },
          { kind: KIND_AUTO rate_limiter {
            resources [ { name: "a" count: 3 }, { name: "b" count: 1 global: true } ] priority: 2 } }
        ]
        dynamic_batching {
          preferred_batch_size: [ 4, 8 ]
          max_queue_delay_microseconds: 100
          default_queue_policy { max_queue_size: 16 default_timeout_microseconds: 5000 }
        }
        default_model_filename: "net.onnx"
        parameters { key: "intra_op_thread_count" value: { string_value: "2" } }
        parameters { key: "backline.lane" value: { string_value: "thread" } }
        """,
    )

    assert replace(read_config, declared=b"") == ModelConfig(
        name="m",
        backend="onnxruntime",
        platform="onnxruntime_onnx",
        max_batch_size=8,
        inputs=(
            TensorSpec("x", DataType.FP32, (3, -1)),
            TensorSpec("s", DataType.BYTES, (1,), optional=True),
        ),
        outputs=(TensorSpec("y", DataType.BF16, (2,), labels=("cat", "dög")),),
        version_policy=VersionPolicy(latest=None, specific=("3", "1")),
        instance_count=8,
        instance_groups=(
            InstanceGroup(2, kind="cpu", name="a"),
            InstanceGroup(2, kind="gpu", gpus=(0, 3)),
            InstanceGroup(1, kind="model", passive=True, counted=False),
            InstanceGroup(1, (Resource("a", 3), Resource("b", 1, everywhere=True)), 2, counted=False),
        ),
        lane="thread",
        dynamic_batching=True,
        preferred_batch_sizes=(4, 8),
        max_queue_delay_us=100,
        queue_policy=QueuePolicy(16, 5000),
        default_model_filename="net.onnx",
        parameters={"intra_op_thread_count": "2"},
        source=str(file),
        warnings=(f"config.pbtxt of 'm': {PASSIVE}",),
    )


def test_an_empty_file_leaves_everything_to_the_server(file: Path) -> None:
    assert config(file, "") == ModelConfig("m", source=str(file))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        ("max_batch_size: 0", 0),
        ("max_batch_size: 4", 4),
        ('input { name: "x" data_type: TYPE_FP32 dims: 1 }', 0),
    ],
)
def test_a_batch_limit_of_0_differs_from_none(text: str, expected: int | None, file: Path) -> None:
    assert config(file, text).max_batch_size == expected


def test_only_the_buckets_of_the_first_response_can_be_set(file: Path) -> None:
    control = (
        'metric_control {{ metric_identifier {{ family: "{}" }} histogram_options {{ buckets: [ {} ] }} }}'
    )
    first = control.format("nv_inference_first_response_histogram_ms", "10, 50.5")
    read = config(file, f"model_metrics {{ {first} {control.format('nv_x', '1')} }}")
    assert read.first_response_bounds_ms == (10, 50.5)
    (warning,) = read.warnings
    assert warning == (
        "config.pbtxt of 'm': model_metrics has no effect on 'nv_x': it sets only the buckets of"
        " 'nv_inference_first_response_histogram_ms'"
    )
    with pytest.raises(
        InvalidArgument, match=r"buckets \[2.0, 1.0\], expected finite upper bounds in ascending order"
    ):
        config(file, f"model_metrics {{ {control.format('nv_x', '2, 1')} }}")
    with pytest.raises(InvalidArgument, match="must specify the 'family'"):
        config(file, "model_metrics { metric_control { histogram_options { buckets: [ 1 ] } } }")


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("instance_group { host_policy: 'p' }", "instance_group.host_policy"),
        ("optimization { priority: PRIORITY_MAX }", "optimization.priority"),
        ("model_operations { op_library_filename: 'a.so' }", "model_operations"),
    ],
)
def test_fields_without_effect_are_named(text: str, field: str, file: Path) -> None:
    assert config(file, text).warnings == (
        f"config.pbtxt of 'm': {field} is not supported yet and has no effect",
    )


def test_a_reshape_keeps_the_shapes_of_the_model_and_of_clients(file: Path) -> None:
    text = '%s { name: "%s" data_type: TYPE_FP32 dims: [ 1 ] %s }'
    reshape, empty = "reshape { shape: [ 1, 1 ] }", "reshape { }"
    read = config(
        file,
        f"max_batch_size: 1 {text % ('input', 'x', reshape)}"
        f" {text % ('output', 'y', empty)} {text % ('output', 'z', '')}",
    )
    assert [(spec.shape, spec.reshape) for spec in (*read.inputs, *read.outputs)] == [
        ((1,), (1, 1)),
        ((1,), ()),
        ((1,), None),
    ]
    assert read.warnings == ()


def test_a_reshape_on_an_ensemble_causes_a_warning(file: Path) -> None:
    tensor = '{ name: "x" data_type: TYPE_FP32 dims: 4 reshape { shape: [ 2, 2 ] } }'
    step = (
        'step { model_name: "a" model_version: -1'
        ' input_map { key: "i" value: "x" } output_map { key: "o" value: "y" } }'
    )
    read = config(
        file,
        f'platform: "ensemble" input {tensor} output {tensor.replace("x", "y")}'
        f" ensemble_scheduling {{ {step} }}",
    )
    assert [warning.partition(": ")[2] for warning in read.warnings] == [
        f"{kind}.reshape has no effect on an ensemble: set it for the models of its steps"
        for kind in ("input", "output")
    ]


@pytest.mark.parametrize(
    ("text", "expected"), [("", False), ("model_transaction_policy { decoupled: true }", True)]
)
def test_the_transaction_policy_is_read(text: str, expected: bool, file: Path) -> None:
    assert (config(file, text).decoupled, config(file, text).warnings) == (expected, ())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", False), ("response_cache { enable: true }", True), ("response_cache { }", False)],
)
def test_the_response_cache_is_read(text: str, expected: bool, file: Path) -> None:
    assert (config(file, text).response_cache, config(file, text).warnings) == (expected, ())


def test_features_that_are_off_need_no_warning(file: Path) -> None:
    text = (
        "response_cache { enable: false } model_transaction_policy { decoupled: false }"
        " instance_group { kind: KIND_CPU count: 1 }"
    )

    assert config(file, text).warnings == ()


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("passive: true", PASSIVE),
        (
            "secondary_devices { device_id: 1 }",
            "instance_group.secondary_devices has no effect: no runtime of this server uses NVDLA",
        ),
    ],
)
def test_instances_that_no_runtime_uses_cause_a_warning(text: str, warning: str, file: Path) -> None:
    assert config(file, f"instance_group {{ {text} }}").warnings == (f"config.pbtxt of 'm': {warning}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: 'm'\nmax_batch_sise: 3",
            ":2:1: failed to read text proto: unknown field 'max_batch_sise', did you mean 'max_batch_size'?",
        ),
        (
            "input [ { name: 'x'\n  dimms: [1] } ]",
            ":2:3: failed to read text proto: unknown field 'dimms', did you mean 'dims'?",
        ),
        (
            "input { data_type: TYPE_FLOAT }",
            ":1:20: failed to read text proto: unknown value 'TYPE_FLOAT', did you mean 'TYPE_FP32'?",
        ),
        (
            "instance_group { kind: KIND_CPUS }",
            ":1:24: failed to read text proto: unknown value 'KIND_CPUS', did you mean 'KIND_CPU'?",
        ),
        ("name 3", ':1:6: failed to read text proto: Expected ":".'),
        ("max_batch_size: 'a'", ":1:17: failed to read text proto: Couldn't parse integer: 'a'"),
        (
            "name: 'm' name: 'm'",
            f':1:17: {NOT_READ}Message type "inference.ModelConfig" should not have multiple "name" fields.',
        ),
        ("max_batch_size: 99999999999", ":1:17: failed to read text proto: Value out of range: 99999999999"),
    ],
)
def test_errors_of_the_format_have_line_and_column(text: str, message: str, file: Path) -> None:
    assert error(file, text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "name: 'other'",
            "unexpected directory name 'm' for model 'other', directory name must equal model name",
        ),
        ("max_batch_size: -1", "'max_batch_size' must be non-negative value for m"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }",
            "dynamic batching preferred size must be <= max batch size for m",
        ),
        (
            "dynamic_batching { preferred_batch_size: 0 }",
            "dynamic batching preferred size must be positive for m",
        ),
        (
            "input { name: 'x' data_type: TYPE_FP32 dims: -2 }",
            "model input 'x' dimension must be integer >= 1, or -1 to indicate a variable",
        ),
        ("input { data_type: TYPE_FP32 }", "model input must specify 'name'"),
        ("output { name: 'y' }", "model output 'y' must specify 'data_type'"),
        (
            (
                "input { name: 'x' data_type: TYPE_FP32 dims: 1 }"
                " input { name: 'x' data_type: TYPE_FP32 dims: 1 }"
            ),
            "model input 'x' is given more than once",
        ),
        (
            "output { name: 'y' data_type: TYPE_FP32 dims: 2 label_filename: 'none.txt' }",
            "No such file or directory; it is the label_filename of output 'y'",
        ),
        (
            "output { name: 'y' data_type: TYPE_FP32 dims: 2 label_filename: '../../x' }",
            "must be the name of a file inside",
        ),
        (
            "default_model_filename: '/etc/passwd'",
            "default_model_filename '/etc/passwd' must be the name of a file inside",
        ),
        ("default_model_filename: '../../other'", "must be the name of a file inside"),
        ("instance_group { count: 100000 }", "asks for 100000 instances; at most 256"),
        (
            "input { name: 'x' data_type: 99 dims: 1 }",
            ":1:19: unknown value 99; expected one of TYPE_INVALID, TYPE_BOOL",
        ),
        (
            "instance_group [ { }, { kind: 7 } ]",
            "unknown value 7; expected one of KIND_AUTO, KIND_GPU, KIND_CPU, KIND_MODEL",
        ),
        (
            "model_warmup { inputs { key: 'a' value { data_type: 77 } } }",
            "unknown value 77; expected one of TYPE_INVALID",
        ),
        ("instance_group { count: -1 }", "instance_group has count -1"),
        (
            "max_batch_size: 70000 sequence_batching { }",
            "max_batch_size is 70000; a batch of sequences has a slot for each item",
        ),
        (
            "parameters { key: 'backline.lane' value { string_value: 'gpu' } }",
            "is 'gpu', expected inline, thread or process",
        ),
        (
            "platform: 'ensemble' ensemble_scheduling { step { model_name: 'a' } }",
            "must specify 'input_map' in step 0 of ensemble 'm'",
        ),
        ("platform: 'ensemble'", "ensemble scheduling must be set for ensemble m whose platform is ensemble"),
    ],
)
def test_contradictions_are_errors(text: str, message: str, file: Path) -> None:
    assert message in error(file, text)


def test_a_file_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(b"name: '\xff'")
    with pytest.raises(InvalidArgument, match=r"config.pbtxt: the file is not UTF-8 text \(byte 7\)"):
        read_folder(file)


def test_a_pipe_is_refused_without_blocking(file: Path) -> None:
    os.mkfifo(file)
    with pytest.raises(InvalidArgument, match=r"config.pbtxt' is not a regular file$"):
        read_folder(file)


def test_a_byte_order_mark_is_accepted(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbfname: 'm'")

    assert read_folder(file).name == "m"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(
            [
                "name",
                "input",
                "max_batch_size",
                "dims",
                "dynamic_batching",
                ":",
                "{",
                "}",
                "[",
                "]",
                ",",
                "-1",
                "8",
                "'m'",
                "TYPE_FP32",
                "\n",
                "#",
                "\0",
            ]
        )
        | st.text(max_size=4)
    ).map(" ".join)
)
def test_any_text_is_read_or_refused_in_one_line(file: Path, text: str) -> None:
    file.write_bytes(text.encode("utf-8", "surrogatepass"))

    assert _outcome(file) in {"read", "refused in one line"}


def _outcome(file: Path) -> str:
    try:
        return "read" if read_folder(file).name == "m" else "read as another model"
    except BacklineError as refused:
        one_line = refused.message.startswith(str(file)) and "\n" not in refused.message
        return "refused in one line" if one_line else refused.message


def test_queue_policies_are_read(file: Path) -> None:
    text = """
        max_batch_size: 4
        dynamic_batching {
          priority_levels: 3
          default_priority_level: 2
          default_queue_policy { default_timeout_microseconds: 100 allow_timeout_override: true }
          priority_queue_policy { key: 1 value { timeout_action: DELAY
            default_timeout_microseconds: 7 max_queue_size: 5 } }
        }
    """

    read = config(file, text)

    assert (read.priority_levels, read.default_priority_level) == (3, 2)
    assert read.queue_policy == QueuePolicy(None, 100, may_shorten=True)
    assert read.priority_queue_policies == {1: QueuePolicy(5, 7, delay=True)}
    assert read.warnings == ()


def test_metric_tags_must_be_valid_labels(file: Path) -> None:
    assert config(
        file, 'metric_tags { key: "b" value: "1" } metric_tags { key: "a" value: "x y" }'
    ).metric_tags == {"a": "x y", "b": "1"}
    with pytest.raises(
        InvalidArgument, match="metric_tags has 'my-tag', which the name of a Prometheus label"
    ):
        config(file, 'metric_tags { key: "my-tag" value: "1" }')
