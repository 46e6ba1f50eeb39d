"""The LiteRT backend: batches of any size, on several threads at once."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import lane_of, load
from backends.served_models import audio, basic_pitch, need
from backline.plugins.runtimes.litert.runtime import _has_loop
from backline_client.values.errors import InvalidArgument
from server.test_hostile_files import TFLITE

need("ai_edge_litert")


def test_runs_of_different_sizes_at_the_same_time_do_not_disturb_each_other() -> None:
    need("basic_pitch")
    model = load(basic_pitch() / "nmp.tflite")
    windows = audio(3)
    alone = [model.run({"input_2": windows[i : i + 1]}, ["note"])[0] for i in range(3)]

    with ThreadPoolExecutor(3) as threads:
        sizes = [1, 3, 2, 1, 3, 2]
        answers = list(threads.map(lambda size: model.run({"input_2": windows[:size]}, ["note"])[0], sizes))

    for size, answer in zip(sizes, answers, strict=True):
        np.testing.assert_allclose(answer, np.concatenate(alone[:size]), atol=1e-5)


def convert(function: Any, *specs: Any) -> bytes:
    """A file whose batch is fixed to one, as converters make them by default."""
    import tensorflow as tf

    concrete = tf.function(function, input_signature=specs).get_concrete_function()
    converted: bytes = tf.lite.TFLiteConverter.from_concrete_functions([concrete]).convert()
    return converted


def test_a_batch_that_the_file_fixes_to_one_is_resized_where_the_network_allows(tmp_path: Path) -> None:
    need("tensorflow")
    import tensorflow as tf

    (tmp_path / "model.tflite").write_bytes(
        convert(lambda x: tf.nn.relu(x) * 2, tf.TensorSpec([1, 4], tf.float32, "x"))
    )
    model = load(tmp_path / "model.tflite")
    (given,), (answered,) = model.signature.inputs, model.signature.outputs

    (answer,) = model.run({given.name: np.full((5, 4), 3, np.float32)}, [answered.name])

    assert (given.shape, answered.shape) == ((-1, 4), (-1, 4))
    np.testing.assert_array_equal(answer, np.full((5, 4), 6, np.float32))


def test_a_batch_of_one_that_the_network_needs_is_kept(tmp_path: Path) -> None:
    need("tensorflow")
    import tensorflow as tf

    (tmp_path / "model.tflite").write_bytes(
        convert(lambda x: tf.reshape(x, [2, 2]), tf.TensorSpec([1, 4], tf.float32, "x"))
    )
    model = load(tmp_path / "model.tflite")

    assert model.signature.inputs[0].shape == (1, 4)
    (answer,) = model.run(
        {model.signature.inputs[0].name: np.arange(4, dtype=np.float32)[None]},
        [model.signature.outputs[0].name],
    )
    np.testing.assert_array_equal(answer, np.arange(4, dtype=np.float32).reshape(2, 2))


def test_a_missing_signature_lists_the_available_ones() -> None:
    need("basic_pitch")
    with pytest.raises(InvalidArgument, match="has no signature 'sing'; it has 'serving_default'"):
        load(basic_pitch() / "nmp.tflite", parameters={"signature": "sing"})


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.tflite").write_bytes(b"something else altogether")

    with pytest.raises(InvalidArgument, match="is not a LiteRT model: it lacks the file identifier 'TFL3'"):
        load(tmp_path / "model.tflite")


def test_a_shape_that_does_not_fit_is_refused_and_the_next_run_is_right() -> None:
    need("basic_pitch")
    model = load(basic_pitch() / "nmp.tflite")
    (before,) = model.run({"input_2": audio(1)}, ["note"])

    with pytest.raises(InvalidArgument, match="model 'm' refuses the input"):
        model.run({"input_2": np.zeros((1, 100, 1, 1), np.float32)}, ["note"])

    np.testing.assert_array_equal(model.run({"input_2": audio(1)}, ["note"])[0], before)


def test_a_loaded_model_does_not_change_with_its_file(tmp_path: Path) -> None:
    need("basic_pitch")
    file = tmp_path / "model.tflite"
    shutil.copy(basic_pitch() / "nmp.tflite", file)
    model = load(file)
    inputs = {"input_2": audio(1)}
    before = model.run(inputs, ["note"])[0]

    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
        opened.truncate(4096)
    np.testing.assert_array_equal(model.run(inputs, ["note"])[0], before)
    with pytest.raises(InvalidArgument):  # the next run creates another interpreter
        model.run({"input_2": np.zeros((1, 5, 1), np.float32)}, ["note"])
    np.testing.assert_array_equal(model.run(inputs, ["note"])[0], before)


def test_a_loop_does_not_run_on_the_event_loop(tmp_path: Path) -> None:
    need("tensorflow")
    import tensorflow as tf

    def count(n: Any) -> Any:
        return tf.while_loop(lambda i: i < n[0], lambda i: [i + 1], [tf.constant(0)])[0]

    file = tmp_path / "model.tflite"
    file.write_bytes(convert(count, tf.TensorSpec([1], tf.int32, "n")))
    model = load(file)
    (given,), (answered,) = model.signature.inputs, model.signature.outputs

    assert model.run({given.name: np.int32([7])}, [answered.name])[0] == 7
    lane, warnings = lane_of(file)
    assert lane == "thread"
    assert "lane inline has no effect, and the model runs on threads: the model has a loop" in warnings


def test_a_network_without_a_loop_may_run_on_the_event_loop(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(TFLITE)

    assert lane_of(file) == ("inline", "")
    assert not _has_loop(TFLITE)
    for end in range(8, len(TFLITE), 64):  # nothing is known of a file that is cut off
        _has_loop(TFLITE[:end])
    assert _has_loop(TFLITE[:8])
