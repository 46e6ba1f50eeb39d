"""The ONNX Runtime backend: signatures, runs, parameters and errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from threading import Thread

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from backends.loading import imports_of
from backline.engine.config.model_config import ModelConfig
from backline.plugins.runtimes.onnx.runtime import OnnxModel, OnnxRuntime
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import TensorSpec
from support.networks import FLOAT, INT64, STRING, build, floats, ints, node

X, Y = "X", "Y"

NUMBERS = {
    DataType.BOOL: TensorProto.BOOL,
    DataType.UINT8: TensorProto.UINT8,
    DataType.UINT16: TensorProto.UINT16,
    DataType.UINT32: TensorProto.UINT32,
    DataType.UINT64: TensorProto.UINT64,
    DataType.INT8: TensorProto.INT8,
    DataType.INT16: TensorProto.INT16,
    DataType.INT32: TensorProto.INT32,
    DataType.INT64: TensorProto.INT64,
    DataType.FP16: TensorProto.FLOAT16,
    DataType.FP32: TensorProto.FLOAT,
    DataType.FP64: TensorProto.DOUBLE,
    DataType.BF16: TensorProto.BFLOAT16,
}


def load(path: Path, **fields: object) -> OnnxModel:
    config = ModelConfig("m", source="config.pbtxt", **fields)  # type: ignore[arg-type]
    return OnnxRuntime().load(path, config)


def identity(path: Path, datatype: int = FLOAT, shape: tuple[str | int, ...] = ("N", 4)) -> Path:
    return build(path, [node("Identity", [X], [Y])], [(X, datatype, shape)], [(Y, datatype, shape)])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("datatype", NUMBERS, ids=lambda datatype: datatype.name)
def test_numbers_of_every_datatype_pass_unchanged(datatype: DataType, file: Path) -> None:
    model = load(identity(file, NUMBERS[datatype]))
    values = np.arange(8).reshape(2, 4).astype(datatype.dtype)

    (answer,) = model.run({X: values}, [Y])

    assert model.signature.inputs == (TensorSpec(X, datatype, (-1, 4)),)
    assert model.signature.outputs == (TensorSpec(Y, datatype, (-1, 4)),)
    assert answer.dtype == datatype.dtype
    np.testing.assert_array_equal(answer, values)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
@pytest.mark.parametrize("datatype", [FLOAT, STRING, TensorProto.BFLOAT16])
def test_tensors_without_elements_keep_their_shape(datatype: int, shape: tuple[int, int], file: Path) -> None:
    model = load(identity(file, datatype, ("N", "M")))

    (answer,) = model.run({X: np.empty(shape, model.signature.inputs[0].datatype.dtype)}, [Y])

    assert answer.shape == shape


def test_bfloat16_is_computed_and_returned_with_other_datatypes(file: Path) -> None:
    bf16 = TensorProto.BFLOAT16
    nodes = [
        node("Cast", [X], ["f"], to=FLOAT),
        node("Mul", ["f", "B"], ["n"]),
        node("Cast", ["n"], [Y], to=bf16),
        node("Cast", ["n"], ["S"], to=STRING),
    ]
    model = load(
        build(file, nodes, [(X, bf16, ["N"]), ("B", FLOAT, ["N"])], [(Y, bf16, ["N"]), ("S", STRING, ["N"])])
    )
    bits = np.array([0x3F80, 0x4000], np.uint16)  # 1.0 and 2.0

    product, texts = model.run({X: bits, "B": np.array([-1, 0.5], np.float32)}, [Y, "S"])

    np.testing.assert_array_equal(product, np.array([0xBF80, 0x3F80], np.uint16))  # -1.0 and 1.0
    assert texts.tolist() == [b"-1", b"1"]


def test_bfloat16_with_string_inputs_is_refused_at_load(file: Path) -> None:
    nodes = [node("Identity", [X], [Y]), node("Identity", ["S"], ["T"])]
    bf16 = TensorProto.BFLOAT16
    build(file, nodes, [(X, bf16, ["N"]), ("S", STRING, ["N"])], [(Y, bf16, ["N"]), ("T", STRING, ["N"])])

    with pytest.raises(InvalidArgument, match="it has BF16 tensors and the string input 'S'"):
        load(file)


def test_strings_are_bytes_outside_and_keep_every_character(file: Path) -> None:
    model = load(identity(file, STRING, ("N",)))
    texts = np.array([b"", b"plain", "Größe \u266b \U0001f3b5".encode(), b"a\0b", b"x" * 100_000], object)

    (answer,) = model.run({X: texts}, [Y])

    assert answer.tolist() == texts.tolist()


def test_bytes_that_are_not_utf_8_are_refused_with_their_position(file: Path) -> None:
    model = load(identity(file, STRING, ("N",)))

    with pytest.raises(
        InvalidArgument, match=r"element 1 of input 'X' of model 'm' is not UTF-8 text \(byte 2\)"
    ):
        model.run({X: np.array([b"ok", b"ab\xff"], object)}, [Y])


def test_scalars_have_rank_0(file: Path) -> None:
    model = load(
        build(file, [node("Mul", [X, "S"], [Y])], [(X, FLOAT, []), ("S", FLOAT, [])], [(Y, FLOAT, [])])
    )

    (answer,) = model.run({X: np.array(3, np.float32), "S": np.array(2, np.float32)}, [Y])

    assert model.signature.inputs[0].shape == ()
    assert answer.shape == ()
    assert answer == 6


@pytest.mark.parametrize("datatype", [FLOAT, STRING, TensorProto.BFLOAT16, TensorProto.BOOL])
def test_scalars_of_every_kind_of_model_have_rank_0(datatype: int, file: Path) -> None:
    model = load(identity(file, datatype, ()))
    value = np.array(b"text" if datatype == STRING else 1, model.signature.inputs[0].datatype.dtype)

    (answer,) = model.run({X: value}, [Y])

    assert answer.shape == ()
    assert answer == value


def test_only_the_outputs_asked_for_come_in_their_order(file: Path) -> None:
    nodes = [node("Neg", [X], ["A"]), node("Abs", [X], ["B"]), node("Relu", [X], ["C"])]
    model = load(build(file, nodes, [(X, FLOAT, ["N"])], [(name, FLOAT, ["N"]) for name in "ABC"]))

    answer = model.run({X: np.array([-1], np.float32)}, ("C", "A"))

    assert [array.tolist() for array in answer] == [[0.0], [1.0]]


def test_external_data_is_found_next_to_the_file(tmp_path: Path) -> None:
    plain = build(
        tmp_path / "a.onnx",
        [node("MatMul", [X, "W"], [Y])],
        [(X, FLOAT, ["N", 64])],
        [(Y, FLOAT, ["N", 64])],
        {"W": floats(64, 64)},
    )
    onnx.save_model(onnx.load(plain), tmp_path / "b.onnx", save_as_external_data=True, location="weights.bin")
    values = floats(3, 64, seed=5)

    (expected,) = load(plain).run({X: values}, [Y])
    (answer,) = load(tmp_path / "b.onnx").run({X: values}, [Y])

    assert (tmp_path / "weights.bin").stat().st_size >= 64 * 64 * 4
    np.testing.assert_array_equal(answer, expected)


def test_data_at_any_address_and_of_any_stride_is_read_correctly(file: Path) -> None:
    weights = {"W": floats(64, 9)}
    model = load(
        build(file, [node("MatMul", [X, "W"], [Y])], [(X, FLOAT, ["N", 64])], [(Y, FLOAT, ["N", 9])], weights)
    )
    values = floats(4, 64, seed=1)
    raw = b"odd" + values.tobytes()
    unaligned = np.frombuffer(memoryview(raw)[3:], np.float32).reshape(4, 64)
    strided = np.asfortranarray(values)

    (expected,) = model.run({X: values}, [Y])

    np.testing.assert_array_equal(model.run({X: unaligned}, [Y])[0], expected)
    np.testing.assert_array_equal(model.run({X: strided}, [Y])[0], expected)


def test_an_output_that_differs_from_its_declaration_is_returned_unchanged(file: Path) -> None:
    model = load(build(file, [node("Relu", [X], [Y])], [(X, FLOAT, ["N", "M"])], [(Y, FLOAT, ["N", 7])]))

    (answer,) = model.run({X: np.ones((2, 3), np.float32)}, [Y])

    assert answer.shape == (2, 3)


def test_a_size_of_zero_that_shape_inference_gives_an_output_is_not_announced(file: Path) -> None:
    model = load(build(file, [node("Relu", [X], [Y])], [(X, FLOAT, ["N", 3])], [(Y, FLOAT, [0, 3])]))

    (answer,) = model.run({X: np.ones((2, 3), np.float32)}, [Y])

    assert answer.shape == (2, 3)
    assert model.signature.outputs == (TensorSpec(Y, DataType.FP32, (-1, 3)),)


def test_answers_outlive_the_model(file: Path) -> None:
    model = load(identity(file, TensorProto.BFLOAT16))
    (answer,) = model.run({X: np.full((500, 4), 7, np.uint16)}, [Y])

    model.close()
    del model

    assert (answer == 7).all()


def test_a_closed_model_says_so(file: Path) -> None:
    model = load(identity(file))
    model.close()

    with pytest.raises(Internal, match="model 'm' is unloaded"):
        model.run({X: np.zeros((1, 4), np.float32)}, [Y])


def test_runs_on_several_threads_do_not_mix(file: Path) -> None:
    model = load(
        build(
            file,
            [node("MatMul", [X, "W"], [Y])],
            [(X, FLOAT, ["N", 64])],
            [(Y, FLOAT, ["N", 64])],
            {"W": floats(64, 64)},
        )
    )
    inputs = [floats(4, 64, seed=seed) for seed in range(4)]
    expected = [model.run({X: values}, [Y])[0] for values in inputs]
    right = [0] * 4

    def work(index: int) -> None:
        for _ in range(300):
            right[index] += np.array_equal(model.run({X: inputs[index]}, [Y])[0], expected[index])

    threads = [Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert right == [300] * 4


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        (
            {X: np.zeros((1, 5), np.float32)},
            "model 'm' refuses the input: Got invalid dimensions for input: X",
        ),
        ({X: np.zeros((1, 4), np.float64)}, "model 'm' refuses the input: Unexpected input data type"),
        (
            {X: np.zeros((1, 4), np.float32), "Z": np.zeros(1)},
            "model 'm' refuses the input: Invalid input name: Z",
        ),
    ],
)
def test_wrong_input_is_the_callers_fault(inputs: dict[str, np.ndarray], reason: str, file: Path) -> None:
    model = load(identity(file))

    with pytest.raises(InvalidArgument) as raised:
        model.run(inputs, [Y])

    assert raised.value.message.startswith(reason)
    assert "\n" not in raised.value.message
    assert "ONNXRuntimeError" not in raised.value.message


def test_an_index_out_of_range_is_reported_in_one_line(file: Path) -> None:
    model = load(
        build(
            file,
            [node("Gather", ["W", X], [Y])],
            [(X, INT64, ["N"])],
            [(Y, FLOAT, ["N", 3])],
            {"W": floats(10, 3)},
        )
    )

    with pytest.raises(InvalidArgument, match="indices element out of data bounds") as raised:
        model.run({X: ints(99)}, [Y])

    assert "\n" not in raised.value.message
    assert "onnxruntime_src" not in raised.value.message


def test_a_failing_node_is_the_models_fault_and_prints_nothing(file: Path) -> None:
    build(
        file,
        [node("Reshape", [X, "shape"], [Y])],
        [(X, FLOAT, ["N", 4])],
        [(Y, FLOAT, [2, 4])],
        {"shape": ints(2, 4)},
    )
    program = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from backline.plugins.runtimes.onnx.runtime import OnnxRuntime\n"
        "from backline.engine.config.model_config import ModelConfig\n"
        "model = OnnxRuntime().load(Path(sys.argv[1]), ModelConfig('m'))\n"
        "try: model.run({'X': np.zeros((3, 4), np.float32)}, ['Y'])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(file)], capture_output=True, text=True, check=True
    )

    assert done.stderr == ""
    assert done.stdout.startswith(
        "Internal model 'm' failed: Non-zero status code returned while running Reshape node."
    )
    assert "cannot be reshaped" in done.stdout
    assert "onnxruntime_src" not in done.stdout


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="the kernel does not tell the threads of a process"
)
@pytest.mark.parametrize("before", ["", imports_of("onnxruntime")], ids=["load", "trial"])
def test_telemetry_is_disabled(file: Path, before: str) -> None:
    identity(file)
    program = (
        f"{before}"
        "import os, sys; from pathlib import Path\n"
        "from backline.plugins.runtimes.onnx.runtime import OnnxRuntime\n"
        "from backline.engine.config.model_config import ModelConfig\n"
        "OnnxRuntime().load(Path(sys.argv[1]), ModelConfig('m'))\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    # CI: the runtime is silent in CI builds anyway.
    ours = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}

    def threads(environment: dict[str, str]) -> str:
        done = subprocess.run(
            [sys.executable, "-c", program, str(file)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    # Its telemetry would start a thread.
    assert threads(ours) == threads({**ours, "ORT_DISABLE_TELEMETRY": "1"})


def test_a_file_that_is_not_a_model_is_named(tmp_path: Path) -> None:
    garbage, empty, pointer = (tmp_path / name for name in ("garbage.onnx", "empty.onnx", "pointer.onnx"))
    os.mkfifo(tmp_path / "pipe.onnx")
    garbage.write_bytes(b"not a model at all")
    empty.touch()
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")

    for path, reason in (
        (garbage, "cannot be loaded by ONNX Runtime"),
        (empty, "is empty"),
        (pointer, "git lfs pull"),
        (tmp_path / "pipe.onnx", "is not a regular file"),
    ):
        with pytest.raises(InvalidArgument) as raised:
            load(path)
        assert str(path) in raised.value.message
        assert reason in raised.value.message
    with pytest.raises(InvalidArgument, match="No such file"):
        load(tmp_path / "missing.onnx")


def test_types_that_no_request_carries_are_refused_at_load(file: Path) -> None:
    tensor = helper.make_tensor_type_proto(FLOAT, ["N"])
    sequence = helper.make_sequence_type_proto(tensor)
    graph = helper.make_graph(
        [node("SequenceConstruct", [X, X], [Y])],
        "graph",
        [helper.make_tensor_value_info(X, FLOAT, ["N"])],
        [helper.make_value_info(Y, sequence)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), file)

    with pytest.raises(
        InvalidArgument, match=r"output 'Y' is a seq\(tensor\(float\)\), which no request can carry"
    ):
        load(file)


def test_a_missing_runtime_names_the_extra(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    identity(file)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)

    with pytest.raises(Internal, match=r"pip install 'backline\[onnx\]'"):
        load(file)


# what the configuration says


def test_parameters_reach_the_session(file: Path) -> None:
    parameters = {
        "intra_op_thread_count": "2",
        "inter_op_thread_count": "3",
        "execution_mode": "1",
        "enable_mem_arena": "0",
        "enable_mem_pattern": "0",
        "graph_optimization_level": "basic",
        "session.intra_op.allow_spinning": "1",
    }

    model = load(identity(file), parameters=parameters)

    options = model._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 3)
    assert options.execution_mode.name == "ORT_PARALLEL"
    assert not options.enable_cpu_mem_arena
    assert not options.enable_mem_pattern
    assert options.graph_optimization_level.name == "ORT_ENABLE_BASIC"
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert model.warnings == ()


@pytest.mark.parametrize(
    "key",
    [
        "session.collect_node_memory_stats_to_file",
        "session.optimized_model_filepath",
        "session.enable_profiling",
        "session.node_partition_config_file",
        "session.moe.offload.derived_cache_dir",
        "session.of_a_later_release",
        "optimization.minimal_build_optimizations",
    ],
)
def test_a_session_option_outside_the_list_is_refused(file: Path, tmp_path: Path, key: str) -> None:
    """Many such options make ONNX Runtime write or map the file that they name."""
    written = tmp_path / "written"

    with pytest.raises(InvalidArgument, match="is not a session option that a model may set"):
        load(identity(file), parameters={key: str(written)})

    assert list(tmp_path.glob("written*")) == []


def test_one_thread_that_does_not_spin_is_the_default(file: Path) -> None:
    options = load(identity(file))._session.get_session_options()

    assert options.intra_op_num_threads == 1
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_unknown_parameters_are_warned_about(file: Path) -> None:
    model = load(identity(file), parameters={"intra_op_thread_cuont": "2"})

    (warning,) = model.warnings
    assert warning.startswith("parameter 'intra_op_thread_cuont' of model 'm' is not known")
    assert warning.endswith("did you mean 'intra_op_thread_count'?")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("intra_op_thread_count", "many"),
        ("intra_op_thread_count", "-1"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "perhaps"),
    ],
)
def test_wrong_parameters_are_errors(key: str, value: str, file: Path) -> None:
    with pytest.raises(InvalidArgument, match=f"parameter '{key}' of model 'm' is '{value}', expected "):
        load(identity(file), parameters={key: value})


def test_a_configuration_narrows_and_labels_the_signature(file: Path) -> None:
    nodes = [node("Relu", [X], [Y]), node("Neg", [X], ["Z"])]
    build(file, nodes, [(X, FLOAT, ["N", "M"])], [(Y, FLOAT, ["N", "M"]), ("Z", FLOAT, ["N", "M"])])

    model = load(
        file,
        max_batch_size=8,
        inputs=(TensorSpec(X, DataType.FP32, (3,)),),
        outputs=(TensorSpec(Y, DataType.FP32, (-1,), labels=("cat", "dog")),),
    )

    assert model.signature.inputs == (TensorSpec(X, DataType.FP32, (-1, 3)),)
    assert model.signature.outputs == (TensorSpec(Y, DataType.FP32, (-1, -1), labels=("cat", "dog")),)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (
            {"inputs": (TensorSpec("Q", DataType.FP32, (-1, 4)),)},
            r"names the input 'Q', which '.*' does not have; it has 'X'",
        ),
        (
            {"inputs": (TensorSpec(X, DataType.INT32, (-1, 4)),)},
            r"input 'X' is TYPE_INT32 in config.pbtxt, but TYPE_FP32 in '",
        ),
        (
            {"inputs": (TensorSpec(X, DataType.FP32, (-1, 5)),)},
            r"input 'X' has shape \[-1, 5\] in config.pbtxt, but \[-1, 4\] in '",
        ),
        (
            {"inputs": (TensorSpec(X, DataType.FP32, (4,)),)},
            r"input 'X' has shape \[4\] in config.pbtxt, but \[-1, 4\] in '",
        ),
        (
            {"inputs": (TensorSpec(X, DataType.FP32, (-1, 4), optional=True),)},
            r"input 'X' is optional, but '.*' needs it",
        ),
        (
            {"outputs": (TensorSpec("Q", DataType.FP32, (-1, 4)),)},
            r"names the output 'Q', which '.*' does not have; it has 'Y'$",
        ),
        (
            {"max_batch_size": 4, "outputs": (TensorSpec(Y, DataType.FP32, (-1, 4)),)},
            r"\[-1, -1, 4\] \(with the batch dimension",
        ),
    ],
)
def test_a_configuration_that_disagrees_with_the_file_is_an_error(
    fields: dict[str, object], reason: str, file: Path
) -> None:
    with pytest.raises(InvalidArgument, match=reason):
        load(identity(file), **fields)


def test_a_batch_limit_for_a_model_without_batch_dimension_is_an_error(file: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"max_batch_size 8 .* input 'X' .* has shape \[1, 4\], whose first dimension is not the batch"
        r" dimension",
    ):
        load(identity(file, shape=(1, 4)), max_batch_size=8)


def test_a_batch_that_is_another_dimension_can_be_named(file: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=(
            r"\[2, -1\], whose .* full dims, or name the batch dimension, as backline.batch_axis.X ="
            r" 1$"
        ),
    ):
        load(identity(file, shape=(2, "N")), max_batch_size=8)


def test_every_input_must_be_configured_or_none(file: Path) -> None:
    build(file, [node("Add", [X, "B"], [Y])], [(X, FLOAT, ["N"]), ("B", FLOAT, ["N"])], [(Y, FLOAT, ["N"])])

    with pytest.raises(InvalidArgument, match=r"needs input 'B', which config.pbtxt does not name"):
        load(file, inputs=(TensorSpec(X, DataType.FP32, (-1,)),))
