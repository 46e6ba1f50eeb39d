"""Builds models that read or write files: `python hostile_files.py KIND FOLDER SECRET`.

Runs in a child process, so that no test process imports three frameworks.
SECRET is the file that the models try to reach.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def torch_scripts(folder: Path, secret: str) -> None:
    import torch

    class Reading(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.path = secret

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_file(self.path, True, 4, dtype=torch.uint8).to(torch.float32)

    class Plain(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    class Words(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "save from_file"

    class Child(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.full((1,), 2.0))

        @torch.jit.export
        def save(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.save(x)

    class OwnNames(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = Child()
            self.save = torch.nn.Parameter(torch.ones(1))
            self.from_file = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.child.save(x) + self.save + self.from_file

    made = {"reading": Reading(), "plain": Plain(), "words": Words(), "own_names": OwnNames()}
    for name, module in made.items():
        torch.jit.script(module).save(str(folder / f"{name}.pt"))


def saved_models(folder: Path, secret: str) -> None:
    import tensorflow as tf

    raw = tf.raw_ops

    def reads(x: Any) -> Any:
        return tf.io.read_file(secret)

    def writes(x: Any) -> Any:
        tf.io.write_file(secret, "overwritten")
        return x

    def lists(x: Any) -> Any:
        return tf.io.matching_files("/*")

    def prints(x: Any) -> Any:
        tf.print("overwritten", output_stream=f"file://{secret}")
        return x

    def restores(x: Any) -> Any:
        return raw.RestoreV2(prefix=secret, tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32])[0]

    def saves(x: Any) -> Any:
        raw.SaveV2(prefix=secret, tensor_names=["w"], shape_and_slices=[""], tensors=[x])
        return x

    def calls(x: Any) -> Any:
        return tf.numpy_function(lambda value: value, [x], tf.float32)

    def nested(x: Any) -> Any:
        return tf.cond(tf.size(x) > 0, lambda: tf.io.read_file(secret), lambda: tf.constant(""))

    def save(name: str, compute: Callable[[Any], Any], dtype: Any, objects: dict[str, Any]) -> None:
        module = tf.Module()
        module.weight = tf.Variable(2.0)
        module.objects = objects
        signature = [tf.TensorSpec([None], dtype, "x")]
        served = tf.function(lambda x: {"y": compute(x), "weight": module.weight}, input_signature=signature)
        tf.saved_model.save(module, str(folder / name), {"serving_default": served})

    for compute in (reads, writes, lists, prints, restores, saves, calls, nested):
        save(compute.__name__, compute, tf.float32, {})
    words = folder / "words.txt"
    words.write_text("piano\nforte\n")
    line = tf.lookup.TextFileIndex
    file = tf.lookup.TextFileInitializer(str(words), tf.string, line.WHOLE_LINE, tf.int64, line.LINE_NUMBER)
    table = tf.lookup.StaticHashTable(file, -1)
    save("table", table.lookup, tf.string, {"table": table})


def jax_function(folder: Path, secret: str) -> None:
    import jax
    import numpy as np

    target = "xla_ffi_python_cpu_callback"
    call = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct((1,), np.float32))
    exported = jax.export.export(
        jax.jit(lambda x: call(x, index=np.uint64(0))),
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(target)],
    )(jax.ShapeDtypeStruct((1,), np.float32))
    (folder / "model.jax").write_bytes(exported.serialize())


BUILDERS = {build.__name__: build for build in (torch_scripts, saved_models, jax_function)}

if __name__ == "__main__":
    BUILDERS[sys.argv[1]](Path(sys.argv[2]), sys.argv[3])
