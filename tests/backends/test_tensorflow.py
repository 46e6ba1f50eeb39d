"""The TensorFlow backend: every signature of a SavedModel, without Keras."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import lane_of, load
from backends.served_models import basic_pitch, need
from backline.backends.backend import COMPILES, LOOPS
from backline.plugins.runtimes.tensorflow.operations import check_operations
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from support.lazy import lazy

need("tensorflow")

tf = lazy("tensorflow")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("several") / "model.savedmodel"

    class Several(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, "x")])
        def double(self, x: Any) -> dict[str, Any]:
            return {"doubled": 2 * x, "sum": tf.reduce_sum(x, 1)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
        def shout(self, word: Any) -> dict[str, Any]:
            return {"shouted": tf.strings.upper(word)}

        @tf.function(input_signature=[tf.TensorSpec([None], tf.bfloat16, "x")])
        def halve(self, x: Any) -> dict[str, Any]:
            return {"halved": x / 2}

    several = Several()
    tf.saved_model.save(
        several,
        str(path),
        {"serving_default": several.double, "shout": several.shout, "halve": several.halve},
    )
    return path


def test_the_default_signature_is_served_where_none_is_named(folder: Path) -> None:
    model = load(folder)
    x = np.arange(8, dtype=np.float32).reshape(2, 4)

    total, doubled = model.run({"x": x}, ["sum", "doubled"])

    assert model.signature.inputs == (TensorSpec("x", DataType.FP32, (-1, 4)),)
    assert model.signature.outputs == (
        TensorSpec("doubled", DataType.FP32, (-1, 4)),
        TensorSpec("sum", DataType.FP32, (-1,)),
    )
    np.testing.assert_array_equal(doubled, 2 * x)
    np.testing.assert_array_equal(total, x.sum(1))


def test_a_parameter_chooses_another_signature(folder: Path) -> None:
    model = load(folder, parameters={"TF_SIGNATURE_DEF": "shout"})

    (answer,) = model.run({"word": np.array([b"piano", b"forte"], object)}, ["shouted"])

    assert answer.tolist() == [b"PIANO", b"FORTE"]


def test_bfloat16_travels_as_its_bits(folder: Path) -> None:
    model = load(folder, parameters={"TF_SIGNATURE_DEF": "halve"})

    (answer,) = model.run({"x": np.array([0x4000], np.uint16)}, ["halved"])

    np.testing.assert_array_equal(answer, np.array([0x3F80], np.uint16))


def test_a_missing_signature_lists_the_available_ones(folder: Path) -> None:
    with pytest.raises(
        InvalidArgument,
        match=r"has no signature 'sing': set .* to one of 'halve', 'serving_default', 'shout'",
    ):
        load(folder, parameters={"TF_SIGNATURE_DEF": "sing"})


def test_the_folder_may_be_that_of_the_version_or_of_the_model(folder: Path) -> None:
    assert load(folder.parent).signature == load(folder).signature


def test_shapes_that_do_not_fit_are_the_clients_fault(folder: Path) -> None:
    with pytest.raises(InvalidArgument, match="model 'm' refuses the input"):
        load(folder).run({"x": np.zeros((2, 5), np.float32)}, ["doubled"])


def test_a_broken_file_is_reported_with_its_folder(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"no protobuf")

    with pytest.raises(InvalidArgument, match=f"'{tmp_path}' cannot be loaded by TensorFlow"):
        load(tmp_path)


def test_a_model_of_keras_is_served_without_it() -> None:
    need("basic_pitch")
    before = "keras" in sys.modules

    model = load(basic_pitch() / "nmp")

    assert [spec.name for spec in model.signature.outputs] == ["contour", "note", "onset"]
    assert ("keras" in sys.modules) == before


def test_a_model_that_was_unloaded_says_so(folder: Path) -> None:
    model = load(folder)
    model.close()

    with pytest.raises(Exception, match="model 'm' is unloaded"):
        model.run({"x": np.zeros((1, 4), np.float32)}, ["doubled"])


@pytest.fixture(scope="module")
def looping(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SavedModels that count to an input `n`, in folders named after how."""
    root = tmp_path_factory.mktemp("looping")
    v1 = tf.compat.v1
    number = tf.TensorSpec([1], tf.int64, "n")

    def count(n: Any) -> Any:
        return tf.while_loop(lambda i: i < n[0], lambda i: [i + 1], [tf.constant(0, tf.int64)])[0]

    class Counting(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[number])
        def called(self, n: Any) -> dict[str, Any]:
            return {"count": tf.cond(n[0] > 0, lambda: count(n), lambda: n[0])}

        @tf.function(input_signature=[number], jit_compile=True)
        def compiled(self, n: Any) -> dict[str, Any]:
            return {"count": n * 2}

    counting = Counting()
    tf.saved_model.save(counting, str(root / "called"), counting.called)
    tf.saved_model.save(counting, str(root / "compiled"), counting.compiled)
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default(), v1.Session() as session:
            n = v1.placeholder(tf.int64, [1], "n")
            v1.saved_model.simple_save(session, str(root / "in the graph"), {"n": n}, {"count": count(n)})
    finally:
        v1.enable_control_flow_v2()
    return root


@pytest.mark.parametrize("kind", ["called", "in the graph"])
def test_a_loop_does_not_run_on_the_event_loop_whatever_the_configuration_says(
    looping: Path, kind: str
) -> None:
    model = load(looping / kind)

    assert model.run({"n": np.int64([7])}, ["count"])[0] == 7
    lane, warnings = lane_of(looping / kind)
    assert lane == "thread"
    assert f"lane inline has no effect, and the model runs on threads: {LOOPS}" in warnings


def test_a_function_that_xla_compiles_does_not_run_on_the_event_loop(looping: Path) -> None:
    assert getattr(load(looping / "compiled"), "unbounded", None) == COMPILES


def test_a_function_that_calls_itself_is_a_loop(folder: Path) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    (meta,) = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes()).meta_graphs
    assert check_operations(folder, meta) == ""
    for function in meta.graph_def.library.function:
        if "restore" in function.signature.name:
            continue
        call = function.node_def.add(name="again", op="PartitionedCall")
        call.attr["f"].func.name = function.signature.name

    assert check_operations(folder, meta) == LOOPS


def test_the_outputs_that_clients_ask_for_need_no_preparation_of_their_own(folder: Path) -> None:
    model = load(folder)
    x = np.zeros((1, 4), np.float32)
    model.run({"x": x}, ["doubled", "sum"])
    fetched = []
    session: Any = model._session  # type: ignore[attr-defined]
    run = session._call_tf_sessionrun
    session._call_tf_sessionrun = lambda *args: fetched.append(args[2]) or run(*args)

    for outputs in (["sum"], ["doubled"], ["sum", "doubled"]):
        assert len(model.run({"x": x}, outputs)) == len(outputs)

    assert fetched[0] == fetched[1] == fetched[2]
