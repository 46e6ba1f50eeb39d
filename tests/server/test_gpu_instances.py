"""GPU instances without GPUs: a stand-in driver reports two, which Python models get as their devices."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import backline
from support import models
from support.cuda_driver import show_gpus
from support.server import ServerProcess, serve

TRITON = """
import json
import os
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        groups = [(group["kind"], group["gpus"]) for group in config["instance_group"]]
        instance = [args["model_instance_" + name] for name in ("kind", "device_id", "name")]
        self.seen = json.dumps([instance, groups, os.environ.get("CUDA_VISIBLE_DEVICES")])

    def execute(self, requests):
        time.sleep(0.2)  # leaves work to the other instances
        answer = pb_utils.Tensor("seen", np.array([self.seen], object))
        return [pb_utils.InferenceResponse([answer]) for _ in requests]
"""
TENSORS = (
    'backend: "python" input { name: "x" data_type: TYPE_INT32 dims: 1 } '
    'output { name: "seen" data_type: TYPE_STRING dims: 1 }'
)
GROUPS = (
    "instance_group [ { count: 2 kind: KIND_GPU }, { name: 'slow' kind: KIND_CPU }, { kind: KIND_MODEL } ]"
)
NATIVE = """
import time

from backline.model import device


class Model:
    def predict(self, x: int) -> str:
        time.sleep(0.2)
        return device()
"""
ALL_IN_ALL = NATIVE.replace("class Model:", "class Model:\n    instances = 3\n")
ONE = np.ones(1, np.int32)
HANDLER = """
import time


def handle(data, context):
    if data is not None:
        time.sleep(0.2)
        return [str(context.system_properties["gpu_id"])] * len(data)
"""


without_cuda = pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has CUDA, and other reasons",
)


def put(repository: Path, name: str, code: str, config: str = "") -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / "model.py").write_text(code)
    if config:
        (repository / name / "config.pbtxt").write_text(config)


def put_archive(repository: Path, name: str, settings: str) -> None:
    folder = repository / name / "1"
    (folder / "MAR-INF").mkdir(parents=True)
    manifest = {"model": {"modelName": name, "handler": "handler.py", "configFile": "model-config.yaml"}}
    (folder / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(manifest))
    (folder / "handler.py").write_text(HANDLER)
    (folder / "model-config.yaml").write_text(settings)


def put_gpu_network(repository: Path) -> None:
    models.add1(repository)
    (repository / "add1" / "config.pbtxt").write_text("instance_group { kind: KIND_GPU }")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    place = tmp_path_factory.mktemp("gpus")
    repository = place / "models"
    put(repository, "groups", TRITON, f"{TENSORS} {GROUPS}")
    put(repository, "nothing", TRITON, TENSORS)
    put(repository, "native", NATIVE)
    put(repository, "three", ALL_IN_ALL)
    put_archive(repository, "archive", "deviceType: gpu\ndeviceIds: [1]\n")
    put_archive(repository, "processor", "deviceType: cpu\n")
    put_gpu_network(repository)
    with serve(repository, place / "server.log", environment=show_gpus(place, 2)) as running:
        running.wait_started()
        yield running


def devices_seen(
    server: ServerProcess, model: str, output: str, count: int, value: Any = ONE
) -> Counter[str]:
    """What a model's instances answer to `count` concurrent requests."""

    async def ask() -> list[str]:
        async with backline.connect_async(server.url) as client:
            answers = await asyncio.gather(*(client[model](value) for _ in range(count)))
            return [np.asarray(answer[output]).item() for answer in answers]

    return Counter(one.decode() if isinstance(one, bytes) else one for one in asyncio.run(ask()))


def test_a_triton_model_receives_its_device_as_from_triton(server: ServerProcess) -> None:
    instances = [json.loads(text) for text in devices_seen(server, "groups", "seen", 6)]

    assert sorted(instance for instance, _, _ in instances) == [
        ["CPU", "0", "slow_0"],
        ["GPU", "0", "groups_0_0"],
        ["GPU", "0", "groups_0_1"],
        ["GPU", "1", "groups_0_0"],
        ["GPU", "1", "groups_0_1"],
        ["MODEL", "0", "groups_2_0"],
    ]
    assert [groups for _, groups, _ in instances] == [
        [["KIND_GPU", [0, 1]], ["KIND_CPU", []], ["KIND_MODEL", []]]
    ] * 6


def test_cuda_visible_devices_is_not_changed_so_device_ids_stay_valid(server: ServerProcess) -> None:
    assert [visible for _, _, visible in map(json.loads, devices_seen(server, "nothing", "seen", 2))] == [
        os.environ.get("CUDA_VISIBLE_DEVICES")
    ] * 2


def test_without_an_instance_group_every_gpu_gets_an_instance(server: ServerProcess) -> None:
    assert sorted(
        instance for instance, _, _ in map(json.loads, devices_seen(server, "nothing", "seen", 2))
    ) == [
        ["GPU", "0", "nothing_0"],
        ["GPU", "1", "nothing_0"],
    ]


def test_a_native_model_can_query_its_device(server: ServerProcess) -> None:
    assert devices_seen(server, "native", "output", 2, [1]) == {"cuda:0": 1, "cuda:1": 1}


def test_a_total_of_instances_is_spread_over_the_gpus(server: ServerProcess) -> None:
    assert devices_seen(server, "three", "output", 3, [1]) == {"cuda:0": 2, "cuda:1": 1}


def test_a_torchserve_archive_sets_its_devices(server: ServerProcess) -> None:
    text = np.array([b"x"], object)

    assert devices_seen(server, "archive", "output", 1, text) == {"1": 1}
    assert devices_seen(server, "processor", "output", 1, text) == {"None": 1}


def test_the_configuration_shows_the_devices_of_instances(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        groups = {name: client[name].config()["instance_group"] for name in ("groups", "nothing", "add1")}

    shown = {
        name: [(one["name"], one["count"], one["kind"], one["gpus"]) for one in of_model]
        for name, of_model in groups.items()
    }
    assert shown["groups"] == [
        ("groups_0", 2, "KIND_GPU", [0, 1]),
        ("slow", 1, "KIND_CPU", []),
        ("groups_2", 1, "KIND_MODEL", []),
    ]
    assert shown["nothing"] == [("nothing", 1, "KIND_GPU", [0, 1])]
    assert shown["add1"][0][2:] == ("KIND_CPU", [])


def test_the_cli_shows_the_devices_of_instances(server: ServerProcess) -> None:
    command = [sys.executable, "-m", "backline", "models", "show", "groups", "--url", server.url]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "instances      6\n" in shown
    assert "device         GPU 0, GPU 1, CPU, its own\n" in shown
    table = {row.split()[0]: row for row in server.output.splitlines() if "READY" in row}
    assert "GPU 0, GPU 1, CPU, its own" in table["groups"]
    assert "GPU 1 " in table["archive"]
    assert "CPU, no GPU" in table["add1"]


@without_cuda
def test_an_onnx_model_without_its_gpu_warns_and_runs_on_the_cpu(server: ServerProcess) -> None:
    with backline.connect(server.url) as client:
        assert client["add1"](np.zeros((1, 16), np.float32))["OUTPUT0"][0, 0] == 1
        because = client["add1"].config(explained=True)["parameters"]["backline.placement"]["string_value"]

    reason = (
        "instance group add1_0 of model add1 asks for a GPU, "
        "but the installed ONNX Runtime has no CUDAExecutionProvider"
    )
    assert f"{reason} (it has " in server.output
    assert "pip install onnxruntime-gpu in place of onnxruntime. The model runs on the CPU" in server.output
    assert f"; on the CPU: {reason}" in because


@without_cuda
def test_a_strict_server_refuses_a_model_whose_gpu_is_unavailable(tmp_path: Path) -> None:
    put_gpu_network(tmp_path / "models")
    put(tmp_path / "models", "python", TRITON, f"{TENSORS} instance_group {{ kind: KIND_GPU gpus: [ 0 ] }}")
    put(tmp_path / "models", "anywhere", TRITON, TENSORS)
    driver = show_gpus(tmp_path, 0, code=100)

    with serve(
        tmp_path / "models", tmp_path / "log", "--strict-devices", ready=False, environment=driver
    ) as server:
        server.wait_started()

    assert (
        "instance group add1_0 of model add1 has kind KIND_GPU "
        "but no GPUs are available: the installed ONNX Runtime has" in server.output
    )
    assert (
        "instance group python_0 of model python has kind KIND_GPU "
        "but no GPUs are available: the NVIDIA driver cannot be used:"
        " CUDA_ERROR_NO_DEVICE" in server.output
    )
    assert "loaded anywhere version 1" in server.output


def test_an_unknown_gpu_id_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    put(tmp_path / "models", "python", TRITON, f"{TENSORS} instance_group {{ kind: KIND_GPU gpus: [ 2 ] }}")

    with serve(
        tmp_path / "models", tmp_path / "log", ready=False, environment=show_gpus(tmp_path, 2)
    ) as server:
        server.wait_started()

    assert (
        "specifies invalid or unsupported gpu id 2. GPUs that this model can run on are: 0, 1"
        in server.output
    )
