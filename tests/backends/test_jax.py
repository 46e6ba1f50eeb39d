"""The JAX backend: names of arguments and outputs, and what cannot be served."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.loading import lane_of, load
from backends.served_models import build_jax, need
from backline.engine.config.model_config import ModelConfig
from backline.lifecycle.loading.loader import load as load_version
from backline.lifecycle.loading.run_time import INLINE_RUN
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import TensorSpec
from support.lazy import lazy

need("jax")

jax, export, numpy = lazy("jax"), lazy("jax.export"), lazy("jax.numpy")


def test_keywords_and_keys_keep_their_names_and_positions_get_one(tmp_path: Path) -> None:
    build_jax(tmp_path)
    signature = load(tmp_path / "model.jax").signature

    assert signature.inputs == (
        TensorSpec("INPUT__0", DataType.FP32, (-1, 4)),
        TensorSpec("scale", DataType.FP32, (-1, 1)),
    )
    assert signature.outputs == (
        TensorSpec("sum", DataType.FP32, (-1,)),
        TensorSpec("tanh", DataType.FP32, (-1, 3)),
    )


def test_bfloat16_travels_as_its_bits(tmp_path: Path) -> None:
    exported = export.export(jax.jit(lambda x: x / 2))(jax.ShapeDtypeStruct((1,), numpy.bfloat16))
    (tmp_path / "model.jax").write_bytes(exported.serialize())

    (answer,) = load(tmp_path / "model.jax").run({"INPUT__0": np.array([0x4000], np.uint16)}, ["OUTPUT__0"])

    np.testing.assert_array_equal(answer, np.array([0x3F80], np.uint16))


def test_a_function_exported_for_another_platform_says_how_to_export_it(tmp_path: Path) -> None:
    exported = export.export(jax.jit(lambda x: x * 2), platforms=["cuda"])(
        jax.ShapeDtypeStruct((1,), numpy.float32)
    )
    (tmp_path / "model.jax").write_bytes(exported.serialize())

    with pytest.raises(
        InvalidArgument, match=r"was exported for cuda; export it with platforms=\['cpu'\] as well"
    ):
        load(tmp_path / "model.jax")


def test_another_file_of_that_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.jax").write_bytes(b"something else altogether, and long enough to be read" * 10)

    with pytest.raises(
        InvalidArgument, match=r"cannot be loaded by JAX .* expected the result of jax\.export\.export"
    ):
        load(tmp_path / "model.jax")


def test_a_damaged_program_is_refused_before_its_first_run(tmp_path: Path) -> None:
    exported = export.export(jax.jit(lambda x: x * 2))(jax.ShapeDtypeStruct((1,), numpy.float32))
    damaged = replace(exported, mlir_module_serialized=exported.mlir_module_serialized[:-40])
    (tmp_path / "model.jax").write_bytes(damaged.serialize())

    with pytest.raises(InvalidArgument, match="cannot be loaded by JAX"):
        load(tmp_path / "model.jax")


def test_a_function_that_cannot_be_compiled_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    def call(x: Any, y: Any) -> Any:
        return jax.ffi.ffi_call("nobody", jax.ShapeDtypeStruct(x.shape, x.dtype))(x) + y

    (items,) = export.symbolic_shape("items")  # inputs that differ in it are refused
    shape = jax.ShapeDtypeStruct((items,), numpy.float32)
    unchecked = [export.DisabledSafetyCheck.custom_call("nobody")]
    exported = export.export(jax.jit(call), disabled_checks=unchecked)(shape, shape)
    (tmp_path / "model.jax").write_bytes(exported.serialize())

    with pytest.raises(Internal, match=r"model 'm' failed: .*nobody"):
        load_version(tmp_path / "model.jax", ModelConfig("m"))


def test_shapes_that_do_not_fit_are_the_clients_fault(tmp_path: Path) -> None:
    build_jax(tmp_path)

    with pytest.raises(InvalidArgument, match="model 'm' refuses the input"):
        load(tmp_path / "model.jax").run(
            {"INPUT__0": np.zeros((2, 5), np.float32), "scale": np.zeros((2, 1), np.float32)}, ["sum"]
        )


def test_a_function_does_not_run_on_the_event_loop_which_would_wait_for_its_compiler(tmp_path: Path) -> None:
    build_jax(tmp_path)

    loaded = load_version(tmp_path / "model.jax", ModelConfig("m"))

    assert loaded.measured.times.seconds[1] < INLINE_RUN
    assert loaded.lane == "thread"
    loaded.close()


def test_a_function_with_a_loop_does_not_run_on_the_event_loop_even_if_configured(tmp_path: Path) -> None:
    def count(n: Any) -> Any:
        return jax.lax.while_loop(lambda i: i < n[0], lambda i: i + 1, 0)

    exported = export.export(jax.jit(count))(jax.ShapeDtypeStruct((1,), numpy.int32))
    (tmp_path / "model.jax").write_bytes(exported.serialize())

    assert load(tmp_path / "model.jax").run({"INPUT__0": np.int32([7])}, ["OUTPUT__0"])[0] == 7
    lane, warnings = lane_of(tmp_path / "model.jax")
    assert lane == "thread"
    assert "lane inline has no effect, and the model runs on threads: the model is compiled" in warnings
