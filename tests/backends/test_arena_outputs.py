"""Outputs that clients hold do not accumulate in a runtime's arena."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from backline.plugins.runtimes.onnx.runtime import LARGE, MAX_HELD, ArenaOutputs
from backline.system.memory import trim

HOLD = """
import gc, sys
from pathlib import Path
import numpy as np
from backline.plugins.runtimes.onnx.runtime import OnnxRuntime
from backline.engine.config.model_config import ModelConfig
from backline.system.memory import resident_bytes, return_large_blocks, trim

return_large_blocks()
model = OnnxRuntime().load(Path(sys.argv[1]), ModelConfig(name="twice"))
array = np.ones((1, 1_000_000), np.float32)
model.run({"x": array}, ["y"])
before = resident_bytes()
held = [model.run({"x": array}, ["y"])[0] for _ in range(60)]
assert all(output[0, 0] == 2 for output in held)
assert resident_bytes() > before + 200e6
del held
gc.collect()
trim()
grown = resident_bytes() - before
assert grown < 100e6, f"{grown / 1e6:.0f} MB stay"
"""


@pytest.mark.skipif(not trim(), reason="the C library cannot give memory back")
def test_memory_of_held_outputs_is_returned(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 1_000_000]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "twice", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, tmp_path / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", HOLD, str(tmp_path / "model.onnx")],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_outputs_are_copied_only_while_too_many_bytes_are_held() -> None:
    arena = ArenaOutputs()
    first = np.zeros(MAX_HELD - LARGE, np.uint8)
    assert arena.limit([first])[0] is first
    second = np.ones(2 * LARGE, np.uint8)
    copied = arena.limit([second])[0]
    assert copied is not second
    assert (copied == 1).all()
    del first
    assert arena.held == 0
    assert arena.limit([second])[0] is second


def test_small_outputs_are_never_copied() -> None:
    arena = ArenaOutputs()
    outputs = [np.zeros(10)]
    assert arena.limit(outputs) is outputs
    assert arena.held == 0
