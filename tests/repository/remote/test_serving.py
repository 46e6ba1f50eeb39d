"""A server process with models in an object store: changes under load, loss of the store, start without
it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import backline
from support.object_stores import Store
from support.server import ServerProcess, serve
from under_load.changes import Deployment, network
from under_load.constant_load import MODEL, Answer, ConstantLoad
from under_load.run import run
from under_load.stores import BucketStore

#: Each kind of change at least once.
CHANGES = 12


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    poll = ["--model-control-mode", "poll", "--repository-poll-secs", "0.2"]
    return [*poll, "--cache-dir", str(tmp_path / "cache"), "--state-dir", str(tmp_path / "state")]


@pytest.mark.timeout(120)
def test_changes_in_a_store_lose_no_request(store: Store, tmp_path: Path, options: list[str]) -> None:
    bucket = BucketStore(store, "prod")
    deployment = Deployment(bucket)
    deployment.lay_out()
    with serve(bucket.location, tmp_path / "log", *options) as server:
        outcome = run(server, deployment, CHANGES)
    print(outcome)
    assert outcome.errors == []
    assert outcome.wrong == []
    assert sum(outcome.changes.values()) == CHANGES


def test_serving_and_the_next_start_survive_the_loss_of_the_store(
    store: Store, tmp_path: Path, options: list[str]
) -> None:
    store.put(f"prod/{MODEL}/1/model.onnx", network(5.0))
    with serve(store.location("prod"), tmp_path / "log", *options) as server:
        answers = asyncio.run(
            _load_while(server, store.relay.cut, "cannot be read, but its models keep serving")
        )
    assert [answer.error for answer in answers if answer.error] == []
    assert {answer.constant for answer in answers} == {5.0}
    with serve(store.location("prod"), tmp_path / "log2", *options) as again:
        assert _constant(again) == 5.0
        assert "Serving the files in the cache" in again.output
        # Once the store is back, its changes are seen.
        store.relay.mend()
        store.put(f"prod/{MODEL}/2/model.onnx", network(7.0))
        _wait(lambda: _constant(again) == 7.0)


async def _load_while(server: ServerProcess, act: Callable[[], None], printed: str) -> list[Answer]:
    """The answers to requests that continue during an action, until the server reports it and for some time
    after."""
    load = ConstantLoad(
        server.url.removeprefix("http://"), server.grpc_url.removeprefix("grpc://"), 100, ("",)
    )
    stop = asyncio.Event()
    sending = asyncio.create_task(load.run(stop))
    await _until(lambda: len(load.answers) > 20)
    act()
    await _until(lambda: printed in server.output)
    count = len(load.answers)
    await _until(lambda: len(load.answers) > count + 20)
    stop.set()
    await sending
    return load.answers


async def _until(reached: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def _wait(reached: Callable[[], bool]) -> None:
    asyncio.run(_until(reached))


def _constant(server: ServerProcess) -> float:
    with backline.connect(server.url) as client:
        return float(client.model(MODEL)(INPUT0=np.zeros((1, 16), np.float32))["OUTPUT0"][0, 0])
