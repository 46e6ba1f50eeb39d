"""Remote models that their servers change without a new version."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from backline.plugins.fleet import description
from backline_client.client import connect
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support.embedded import start, submit
from support.repositories import put
from support.server import free_ports, serve

ECHO = """backend: "identity" max_batch_size: {items}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ {width} ] }} ]
output [ {{ name: "y" data_type: TYPE_FP32 dims: [ {width} ] }} ]
"""


def request(items: int, width: int) -> InferRequest:
    x = np.ones((items, width), np.float32)
    return InferRequest("echo", {"x": Tensor("x", DataType.FP32, x.shape, x)})


async def test_a_server_in_front_follows_a_change_of_the_signature_under_the_same_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "_PAUSE", 0.02)
    config = tmp_path / "models" / "echo" / "config.pbtxt"
    put(config, ECHO.format(items=4, width=1))
    put(tmp_path / "models" / "echo" / "1" / "empty", "")
    explicit = ("--model-control-mode", "explicit", "--load-model", "echo")
    with serve(tmp_path / "models", tmp_path / "log", *explicit) as behind:
        urls = f'parameters {{ key: "urls" value {{ string_value: "{behind.grpc_url}" }} }}'
        put(tmp_path / "front" / "echo" / "config.pbtxt", f'backend: "remote" {urls}')
        put(tmp_path / "front" / "echo" / "1" / "empty", "")
        program = await start(tmp_path / "front")
        try:
            with pytest.raises(InvalidArgument):
                await submit(program, request(8, 2))
            assert (await submit(program, request(4, 1))).outputs[0].shape == (4, 1)

            put(config, ECHO.format(items=8, width=2))
            with connect(behind.url) as client:
                await asyncio.to_thread(client.load, "echo")

            end = time.monotonic() + 30
            while program.engine.find("echo").max_batch_size != 8:
                assert time.monotonic() < end, "the server in front kept the old description"
                with pytest.raises(InvalidArgument):  # the request fits only one of the two servers
                    await submit(program, request(4, 1))
                await asyncio.sleep(0.01)
            assert (await submit(program, request(8, 2))).outputs[0].shape == (8, 2)
        finally:
            await program.stop()


async def test_a_model_that_was_loaded_without_its_servers_is_loaded_again_once_they_describe_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(description, "_PAUSE", 0.02)
    (port,) = free_ports(1)
    urls = f'parameters {{ key: "urls" value {{ string_value: "grpc://127.0.0.1:{port}" }} }}'
    described = ECHO.format(items=4, width=1)
    put(tmp_path / "models" / "echo" / "config.pbtxt", described)
    put(tmp_path / "front" / "echo" / "config.pbtxt", described.replace("identity", "remote") + urls)
    for repository in ("models", "front"):
        put(tmp_path / repository / "echo" / "1" / "empty", "")
    program = await start(tmp_path / "front")
    loads = program.engine.loads["echo"]
    try:
        assert loads.succeeded == 1
        with serve(tmp_path / "models", tmp_path / "log", "--grpc-port", str(port)):
            end = time.monotonic() + 30
            while loads.succeeded == 1:
                assert time.monotonic() < end, "the model was not loaded again"
                await asyncio.gather(submit(program, request(1, 1)), return_exceptions=True)
                await asyncio.sleep(0.01)
            for _ in range(20):  # further looks find the same description
                assert (await submit(program, request(4, 1))).outputs[0].shape == (4, 1)
                await asyncio.sleep(0.01)
        assert loads.succeeded == 2
    finally:
        await program.stop()
