"""Networks on a real GPU, compared with the CPU: `pytest tests/gpu`.

They need an NVIDIA GPU, onnxruntime-gpu and PyTorch for CUDA; without, tests are skipped with the reason. The
server runs with --strict-devices, so that nothing falls back to the CPU unnoticed.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline.backends.backend import LoadOptions, gpus_of
from backline.backends.registry import choose
from backline.backends.runtime import cuda_gpus
from backline.engine.config.model_config import ModelConfig
from backline.engine.device import Device
from support.networks import FLOAT, build, floats, node
from support.server import ServerProcess, serve

pytestmark = pytest.mark.skipif(not cuda_gpus().indexes, reason=f"no GPU to run on: {cuda_gpus().reason}")

ON = {
    "cpu": "instance_group { count: 2 kind: KIND_CPU }",
    "gpu": "instance_group { count: 2 kind: KIND_GPU gpus: [ 0 ] }",
    "auto": "",
}
#: Both runtimes use TF32 (a mantissa of 10 bits) for matrix products on GPUs that support it.
CLOSE = {"rtol": 2e-2, "atol": 2e-2}


def put_onnx(path: Path) -> None:
    build(
        path,
        [
            node("MatMul", ["x", "first"], ["hidden"]),
            node("Relu", ["hidden"], ["positive"]),
            node("MatMul", ["positive", "second"], ["y"]),
        ],
        [("x", FLOAT, ["N", 64])],
        [("y", FLOAT, ["N", 8])],
        {"first": floats(64, 128) / 8, "second": floats(128, 8, seed=1) / 12},
    )


def put_torch(path: Path) -> None:
    import torch

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 8)).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pt":
        torch.jit.trace(network, torch.zeros(2, 64)).save(str(path))
        return
    items = torch.export.Dim("items", min=1, max=1024)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 64),), dynamic_shapes=({0: items},)), path)


TORCH_SCRIPT = (
    'max_batch_size: 64 input { name: "x" data_type: TYPE_FP32 dims: 64 } '
    'output { name: "y" data_type: TYPE_FP32 dims: 8 }'
)
FORMATS = {
    "onnx": ("onnxruntime", "model.onnx", put_onnx, ""),
    "script": ("torch", "model.pt", put_torch, TORCH_SCRIPT),
    "export": ("torch", "model.pt2", put_torch, ""),
}


def why_not(name: str, folder: Path) -> str:
    """Why a format cannot run on a GPU here; empty if it can."""
    module, filename, put, _ = FORMATS[name]
    if importlib.util.find_spec(module) is None:
        return f"{module} is missing"
    put(folder / filename)
    config = ModelConfig("m")
    return gpus_of(choose(config, folder / filename).backend(), folder / filename, config).reason


@pytest.fixture(scope="module")
def reasons(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: why_not(name, tmp_path_factory.mktemp(name)) for name in FORMATS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, reasons: dict[str, str]) -> Iterator[ServerProcess]:
    place = tmp_path_factory.mktemp("gpu")
    for name, (_, filename, put, config) in FORMATS.items():
        if not reasons[name]:
            for kind, groups in ON.items():
                put(place / "models" / f"{name}_{kind}" / "1" / filename)
                (place / "models" / f"{name}_{kind}" / "config.pbtxt").write_text(f"{config} {groups}")
    if not (place / "models").exists():
        pytest.skip(f"no runtime has a GPU: {reasons}")
    with serve(place / "models", place / "server.log", "--strict-devices") as running:
        yield running


@pytest.fixture(params=FORMATS)
def network(request: pytest.FixtureRequest, reasons: dict[str, str]) -> str:
    if reasons[request.param]:
        pytest.skip(reasons[request.param])
    return str(request.param)


def answers(server: ServerProcess, model: str, batches: list[np.ndarray]) -> list[np.ndarray]:
    """A model's answers to concurrent requests, which are batched and run on all of its instances."""

    async def ask() -> list[np.ndarray]:
        async with backline.connect_async(server.url) as client:
            return [
                next(iter(dict(one).values()))
                for one in await asyncio.gather(*(client[model](batch) for batch in batches))
            ]

    return asyncio.run(ask())


@pytest.mark.parametrize("kind", ["gpu", "auto"])
def test_gpu_answers_equal_cpu_answers(server: ServerProcess, network: str, kind: str) -> None:
    batches = [floats(size, 64, seed=size) for size in (1, 2, 3, 5, 8, 13, 1, 2)]

    for on_gpu, on_cpu in zip(
        answers(server, f"{network}_{kind}", batches), answers(server, f"{network}_cpu", batches), strict=True
    ):
        np.testing.assert_allclose(on_gpu, on_cpu, **CLOSE)


def test_the_configuration_shows_the_gpu(server: ServerProcess, network: str) -> None:
    with backline.connect(server.url) as client:
        groups = {kind: client[f"{network}_{kind}"].config()["instance_group"][0] for kind in ON}

    assert (groups["gpu"]["kind"], groups["gpu"]["gpus"], groups["gpu"]["count"]) == ("KIND_GPU", [0], 2)
    assert (groups["auto"]["kind"], groups["auto"]["gpus"]) == ("KIND_GPU", list(cuda_gpus().indexes))
    assert groups["cpu"]["kind"] == "KIND_CPU"


def test_an_onnx_session_uses_cuda(reasons: dict[str, str], tmp_path: Path) -> None:
    if reasons["onnx"]:
        pytest.skip(reasons["onnx"])
    from backline.plugins.runtimes.onnx.runtime import OnnxRuntime

    put_onnx(tmp_path / "model.onnx")
    model = OnnxRuntime().load(tmp_path / "model.onnx", ModelConfig("m"), LoadOptions(Device("gpu", 0)))

    assert model._session.get_providers()[0] == "CUDAExecutionProvider"
    assert model._session.get_provider_options()["CUDAExecutionProvider"]["device_id"] == "0"


@pytest.mark.parametrize("name", ["script", "export"])
def test_the_weights_of_an_exported_program_are_on_the_gpu(
    reasons: dict[str, str], tmp_path: Path, name: str
) -> None:
    if reasons[name]:
        pytest.skip(reasons[name])
    import torch

    from backline.plugins.runtimes.pytorch.programs import load_exported, load_script, moving

    path = tmp_path / FORMATS[name][1]
    put_torch(path)
    before = torch.cuda.memory_allocated(0)
    program = {"script": load_script, "export": load_exported}[name](torch, path, "cuda:0")

    assert torch.cuda.memory_allocated(0) >= before + 4 * (64 * 128 + 128 * 8)
    assert moving(torch, program.call, "cuda:0")(torch.zeros(2, 64)).device == torch.device("cuda", 0)
