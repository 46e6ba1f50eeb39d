"""Models with loops, whose number of turns a request may decide."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support import models


@pytest.mark.parametrize("lane", ["", "inline"])
def test_a_request_for_a_billion_turns_does_not_stop_the_event_loop(
    home: Callable[..., Any], repository: Path, lane: str
) -> None:
    async def scenario() -> None:
        models.counted_loop(repository, "loop")
        if lane:
            (repository / "loop" / "model.toml").write_text(f'lane = "{lane}"\n')
        async with home(repository) as server:
            assert server.engine.find("loop").placement.lane == "thread"
            inputs = {
                "x": Tensor("x", DataType.FP32, (1,), np.float32([2])),
                "N": Tensor("N", DataType.INT64, (1,), np.int64([3])),
            }
            response = await server.engine.infer(InferRequest("loop", inputs))
            assert response.outputs[0].data.tolist() == [-2]
            inputs["N"] = Tensor("N", DataType.INT64, (1,), np.int64([10**12]))
            request = asyncio.create_task(server.engine.infer(InferRequest("loop", inputs)))
            assert not (await asyncio.wait({request}, timeout=0.1))[0]
            request.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 60))
