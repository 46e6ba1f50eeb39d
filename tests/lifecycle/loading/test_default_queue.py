"""How many requests may queue for a model whose configuration does not say."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backline.engine.config.model_config import ModelConfig, QueuePolicy
from backline.lifecycle.loading.loaded import LoadedVersion, Measured
from backline.lifecycle.loading.loader import load
from backline.lifecycle.loading.queueing import settings_of
from backline.lifecycle.loading.run_time import RunTimes
from backline.lifecycle.options import DefaultQueue, LifecycleOptions
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Unavailable
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor
from support import models
from support.embedded import start
from support.server import serve

MS = 1e-3
SECONDS = LifecycleOptions(default_queue="seconds")


def measured(folder: Path, seconds: dict[int, float], limit: int, instances: int) -> LoadedVersion:
    """A version that takes `seconds` by batch size."""
    loaded = load(models.add1(folder), ModelConfig("add1"))
    places = loaded.places[:1] * instances
    return replace(loaded, measured=Measured(times=RunTimes(seconds)), batch_limit=limit, places=places)


@pytest.mark.parametrize(
    ("seconds", "limit", "instances", "size"),
    [
        ({1: 8 * MS}, 0, 1, 125),
        ({1: 8 * MS}, 0, 2, 250),
        ({1: 8 * MS, 2: 9 * MS, 4: 10 * MS}, 4, 1, 400),
        ({1: 8 * MS, 2: 9 * MS, 4: 10 * MS}, 1, 1, 125),
        ({1: 1.0}, 0, 2, 100),
        ({1: 0.1 * MS}, 0, 1, 1024),
        ({}, 0, 1, 1024),
    ],
    ids=["slow", "instances", "batches", "no batches", "very slow", "quick", "not measured"],
)
def test_a_queue_holds_what_can_run_in_a_second(
    tmp_path: Path, seconds: dict[int, float], limit: int, instances: int, size: int
) -> None:
    version = measured(tmp_path, seconds, limit, instances)

    assert settings_of(ModelConfig("m"), version, SECONDS).queue.policy.max_size == size


@pytest.mark.parametrize(("default", "size"), [("requests", 1024), ("any", None)])
def test_the_run_time_does_not_matter_to_programs_and_as_in_triton(
    tmp_path: Path, default: DefaultQueue, size: int | None
) -> None:
    version = measured(tmp_path, {1: 8 * MS}, 0, 1)

    settings = settings_of(ModelConfig("m"), version, LifecycleOptions(default_queue=default))

    assert settings.queue.policy.max_size == size


def test_the_configuration_has_the_last_word(tmp_path: Path) -> None:
    version = measured(tmp_path, {1: 8 * MS}, 0, 1)
    config = ModelConfig(
        "m",
        queue_policy=QueuePolicy(max_size=7),
        priority_levels=2,
        priority_queue_policies={1: QueuePolicy(max_size=9)},
    )

    queue = settings_of(config, version, SECONDS).queue

    assert (queue.policy_of(1).max_size, queue.policy_of(2).max_size) == (9, 7)


def test_a_server_limits_the_wait_and_says_so(tmp_path: Path) -> None:
    models.slow(tmp_path / "models", layers=400)
    (tmp_path / "models" / "slow" / "config.pbtxt").write_text("max_batch_size: 0\n")

    with serve(tmp_path / "models", tmp_path / "log") as server:
        server.wait_for("Ready: 1 of 1")
        found = re.search(r"queue of (\d+)", server.output)

    assert found is not None
    assert 100 <= int(found[1]) < 1024


async def test_more_requests_than_the_default_queue_at_once(tmp_path: Path) -> None:
    """2000 requests at once for one instance: a program's are refused above 1024, Triton's users' are not."""
    array = np.zeros((1, 16), np.float32)
    outcomes = {}
    for default in ("requests", "any"):
        models.add1(tmp_path / "models")
        program = await start(tmp_path / "models", default_queue=default)
        request = InferRequest("add1", {"INPUT0": Tensor("INPUT0", DataType.FP32, array.shape, array)})
        answers = await asyncio.gather(
            *(program.engine.infer(request) for _ in range(2000)), return_exceptions=True
        )
        outcomes[default] = Counter(isinstance(answer, Unavailable) for answer in answers)
        await program.stop()

    assert outcomes["requests"] == {False: 1024, True: 976}
    assert outcomes["any"] == {False: 2000}
