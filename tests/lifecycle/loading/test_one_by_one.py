"""A config.pbtxt with max_batch_size and without dynamic_batching asks for one request per run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support import models
from support.embedded import start

PBTXT = "max_batch_size: 8\n"


@pytest.mark.parametrize(
    ("file", "text", "runs"),
    [
        ("config.pbtxt", PBTXT, 4),
        ("config.pbtxt", PBTXT + "dynamic_batching { }\n", 1),
        ("model.toml", "max_batch_size = 8\n", 1),
        ("config.pbtxt", "", 1),
    ],
    ids=["pbtxt", "asks for batching", "toml", "empty"],
)
async def test_requests_share_a_run_unless_the_configuration_declines(
    tmp_path: Path, file: str, text: str, runs: int
) -> None:
    models.add1(tmp_path / "models")
    (tmp_path / "models" / "add1" / file).write_text(text)
    program = await start(tmp_path / "models")
    array = np.zeros((2, 16), np.float32)

    await asyncio.gather(
        *(
            program.engine.infer(
                InferRequest("add1", {"INPUT0": Tensor("INPUT0", DataType.FP32, array.shape, array)})
            )
            for _ in range(4)
        )
    )

    statistics = program.engine.find("add1").statistics
    assert (statistics.inference_count, statistics.execution_count) == (8, runs)
    await program.stop()
