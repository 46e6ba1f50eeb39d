"""How backends find and use GPUs, with stand-in devices where a runtime has some."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from backends.loading import load
from backends.served_models import build_jax, need
from backline.backends.backend import LoadOptions, gpus_of
from backline.backends.registry import choose
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Device, Gpus
from backline.plugins.runtimes.openvino.runtime import OpenVino, gpu_indexes
from backline.plugins.runtimes.reference.identity import Identity
from backline_client.values.errors import InvalidArgument
from support.cuda_driver import show_gpus
from support.networks import FLOAT, build, floats, node

GPU = Device("gpu", 0)


def asked_in_another_process(code: str, variables: dict[str, str]) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, check=True
    ).stdout.strip()


def gpus_of_the_driver(variables: dict[str, str]) -> str:
    return asked_in_another_process(
        "from backline.backends.runtime import cuda_gpus as ask; g = ask(); print(g.indexes, g.reason)",
        variables,
    )


def test_the_driver_is_asked_for_gpus(tmp_path: Path) -> None:
    assert gpus_of_the_driver(show_gpus(tmp_path, 3)) == "(0, 1, 2)"


def test_a_driver_without_gpus_is_distinguished_from_an_unusable_driver(tmp_path: Path) -> None:
    hidden = {"CUDA_VISIBLE_DEVICES": ""}

    assert (
        gpus_of_the_driver(show_gpus(tmp_path, 0) | hidden)
        == "() the NVIDIA driver reports no GPU (with CUDA_VISIBLE_DEVICES=)"
    )
    assert "() the NVIDIA driver cannot be used: CUDA_ERROR_NO_DEVICE" in gpus_of_the_driver(
        show_gpus(tmp_path, 1, code=100)
    )


def test_a_backend_without_gpus_says_that_it_has_none() -> None:
    assert gpus_of(Identity(), Path(), ModelConfig("m")) == Gpus(
        reason="models of the identity backend run on the CPU"
    )


@pytest.mark.parametrize(
    ("available", "expected"),
    [(["CPU"], ()), (["CPU", "GPU", "NPU"], (0,)), (["CPU", "GPU.0", "GPU.1"], (0, 1))],
)
def test_openvinos_gpus_are_among_its_devices(available: list[str], expected: tuple[int, ...]) -> None:
    assert gpu_indexes(available) == expected


def test_openvino_compiles_for_the_device(tmp_path: Path) -> None:
    need("openvino")
    build(
        tmp_path / "model.onnx",
        [node("Relu", ["X"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 4])],
    )
    config = ModelConfig("m", backend="openvino", source="config.pbtxt")
    gpus = gpus_of(OpenVino(), tmp_path / "model.onnx", config)

    its_own = OpenVino().load(tmp_path / "model.onnx", config, LoadOptions(Device("model")))
    np.testing.assert_allclose(its_own.run({"X": floats(2, 4)}, ["Y"])[0], np.maximum(floats(2, 4), 0))
    assert not gpus.by_default
    if not gpus.indexes:
        assert gpus.reason == "OpenVINO finds no GPU on this machine, only CPU"
        with pytest.raises(InvalidArgument, match=r"(?i)cannot be loaded by OpenVINO.*gpu"):
            OpenVino().load(tmp_path / "model.onnx", config, LoadOptions(GPU))


def test_operations_of_tensorflow_are_placed_on_the_gpu(tmp_path: Path) -> None:
    """TensorFlow computes on the CPU what was placed on a missing GPU."""
    need("tensorflow")
    import tensorflow

    from backline.plugins.runtimes.tensorflow.runtime import TensorFlow

    build_saved_model(tmp_path / "model.savedmodel")
    config = ModelConfig("m", source="config.pbtxt")
    model = TensorFlow().load(tmp_path / "model.savedmodel", config, LoadOptions(Device("gpu", 1)))
    on_cpu = TensorFlow().load(tmp_path / "model.savedmodel", config)

    calls = [one for one in model._session.graph.get_operations() if one.type == "StatefulPartitionedCall"]
    assert {one.device for one in calls} == {"/device:GPU:1"}
    np.testing.assert_allclose(
        model.run({"x": floats(2, 4)}, ["y"])[0], on_cpu.run({"x": floats(2, 4)}, ["y"])[0]
    )
    assert {
        one.device for one in on_cpu._session.graph.get_operations() if one.type == "StatefulPartitionedCall"
    } == {""}
    gpus = TensorFlow().gpus(tmp_path / "model.savedmodel", config)
    assert gpus.indexes == tuple(range(len(tensorflow.config.list_physical_devices("GPU"))))
    assert (
        gpus.indexes
        or "cannot use a GPU (it supports only the CPU): pip install 'tensorflow[and-cuda]'" in gpus.reason
    )


def build_saved_model(folder: Path) -> None:
    import tensorflow

    module = tensorflow.Module()
    module.weights = tensorflow.Variable(floats(4, 3))
    signature = [tensorflow.TensorSpec([None, 4], tensorflow.float32, name="x")]
    multiply = tensorflow.function(
        lambda x: {"y": tensorflow.matmul(x, module.weights)}, input_signature=signature
    )
    tensorflow.saved_model.save(module, str(folder), signatures=multiply.get_concrete_function())


def test_a_function_of_jax_runs_on_its_device(tmp_path: Path) -> None:
    """A second processor of JAX stands in for a GPU."""
    need("jax")
    build_jax(tmp_path)
    code = f"""
import jax, numpy
from pathlib import Path
from backline.backends.backend import LoadOptions
from backline.plugins.runtimes.jax.runtime import Jax
from backline.engine.config.model_config import ModelConfig

path, config = Path({str(tmp_path / "model.jax")!r}), ModelConfig("m")
devices = jax.devices()
jax.devices = lambda kind=None: devices[1:] if kind == "gpu" else devices
from backline.engine.device import Device
model = Jax().load(path, config, LoadOptions(Device("gpu", 0)))
call, seen = model._call, []
model._call = lambda *a, **k: (seen.extend(jax.tree_util.tree_leaves((a, k))), call(*a, **k))[1]
inputs = {{"INPUT__0": numpy.ones((2, 4), "f4"), "scale": numpy.ones((2, 1), "f4")}}
there = model.run(inputs, ["sum"])[0]
assert (there == Jax().load(path, config).run(inputs, ["sum"])[0]).all()
print({{device.id for value in seen for device in value.devices()}}, Jax().gpus(path, config).reason)
"""
    told = asked_in_another_process(
        code, {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    )

    assert (
        told
        == f"{{1}} '{tmp_path / 'model.jax'}' was exported for cpu: export it with platforms=['cpu', 'cuda']"
    )


def test_a_program_of_pytorch_runs_on_its_device(tmp_path: Path) -> None:
    """The "meta" device (shapes without values) stands in for a GPU; the whole program must be on it."""
    need("torch")
    import torch

    from backline.plugins.runtimes.pytorch.programs import device_name, load_exported, moving

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)
            self.register_buffer("offset", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) + self.offset + torch.arange(3)

    torch.export.save(torch.export.export(Net().eval(), (torch.zeros(2, 4),)), tmp_path / "model.pt2")
    program = load_exported(torch, tmp_path / "model.pt2", "meta")

    answer = moving(torch, program.call, "meta")(torch.zeros(2, 4))
    assert (answer.device.type, answer.shape) == ("meta", (2, 3))
    assert [device_name(one) for one in (Device(), Device("gpu", 2), Device("model"))] == [
        "cpu",
        "cuda:2",
        None,
    ]
    assert moving(torch, lambda x, scale: x * scale, "cpu")(torch.ones(2), 3).tolist() == [3, 3]


def test_pytorch_says_why_it_has_no_gpu(tmp_path: Path) -> None:
    need("torch")
    import torch

    from backline.plugins.runtimes.pytorch.programs import usable_gpus

    gpus = usable_gpus(torch)
    assert gpus.indexes == tuple(range(torch.cuda.device_count()))
    if not (torch.version.cuda or torch.version.hip):
        assert (
            f"the installed PyTorch {torch.__version__} supports only the CPU: pip install torch from an"
            " index" in gpus.reason
        )


def test_machine_code_runs_on_the_kind_of_device_that_it_was_compiled_for(tmp_path: Path) -> None:
    need("torch")
    for kind in ("cpu", "cuda"):
        with zipfile.ZipFile(tmp_path / f"{kind}.pt2", "w") as archive:
            archive.writestr("model/data/aotinductor/model/code.so", b"\x7fELF")
            archive.writestr(
                "model/data/aotinductor/model/code.wrapper_metadata.json",
                json.dumps({"AOTI_DEVICE_KEY": kind}),
            )
    config = ModelConfig("m")
    backend = choose(config, tmp_path / "cpu.pt2").backend()

    assert (
        gpus_of(backend, tmp_path / "cpu.pt2", config).reason
        == f"'{tmp_path / 'cpu.pt2'}' was compiled for cpu"
    )
    with pytest.raises(InvalidArgument, match="was compiled for cuda, and cannot run on cpu"):
        load(tmp_path / "cuda.pt2", trust_pickle=True)


def test_an_onnx_session_on_a_gpu_that_does_not_work_is_refused_and_not_run_on_the_cpu(
    tmp_path: Path,
) -> None:
    import onnxruntime

    from backline.plugins.runtimes.onnx.runtime import OnnxRuntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    build(
        tmp_path / "model.onnx",
        [node("Relu", ["X"], ["Y"])],
        [("X", FLOAT, ["N", 4])],
        [("Y", FLOAT, ["N", 4])],
    )

    with pytest.raises(
        InvalidArgument,
        match="asks for the execution provider 'cuda', which the installed ONNX Runtime does not have",
    ):
        OnnxRuntime().load(tmp_path / "model.onnx", ModelConfig("m"), LoadOptions(GPU))
