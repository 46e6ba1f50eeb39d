"""The TensorFlow backend: every signature of a SavedModel, without Keras."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import load
from backends.served_models import basic_pitch, need
from backline.engine.errors import InvalidArgument
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import TensorSpec
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
