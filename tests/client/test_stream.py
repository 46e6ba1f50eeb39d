"""Streams of responses: the same over every transport, synchronous and asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import numpy as np
import pytest

from backline_client.client import Client, connect, connect_async
from backline_client.client.errors import InvalidArgument, NotFound, Unsupported
from support.server import ServerProcess, serve
from support.streaming import put_models


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return put_models(tmp_path_factory.mktemp("streams"))


@pytest.fixture(scope="module")
def streaming_server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serve(repository, tmp_path_factory.mktemp("log") / "server.log") as running:
        yield running


@pytest.fixture(scope="module", params=["http", "grpc", "inproc"])
def url(request: pytest.FixtureRequest, streaming_server: ServerProcess, repository: Path) -> str:
    return {
        "http": streaming_server.url,
        "grpc": streaming_server.grpc_url,
        "inproc": f"inproc://{repository}",
    }[request.param]


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[Client]:
    with connect(url, timeout=20) as connected:
        yield connected


def inputs(count: int, delay: int = 0) -> dict[str, np.ndarray]:
    return {
        "IN": np.arange(10, 10 + count, dtype=np.int32),
        "DELAY": np.full(count, delay, np.uint32),
        "WAIT": np.zeros(1, np.uint32),
    }


@pytest.mark.parametrize("count", [0, 1, 3, 500])
def test_all_responses_come_in_order(client: Client, count: int) -> None:
    got = [(int(part.OUT[0]), int(part.IDX[0])) for part in client["repeat"].stream(inputs(count))]

    assert got == [(10 + index, index) for index in range(count)]


def test_arrays_have_datatype_and_shape(client: Client) -> None:
    (part,) = client["repeat"].stream(inputs(1))

    assert (part.OUT.dtype, part.OUT.shape, part.IDX.dtype) == (np.int32, (1,), np.uint32)
    assert part.model_name == "repeat"


def test_only_requested_outputs_are_returned(client: Client) -> None:
    parts = list(client["repeat"].stream(inputs(2), outputs=["IDX"]))

    assert [list(part) for part in parts] == [["IDX"], ["IDX"]]


def test_a_model_with_one_response_is_a_stream_of_one(client: Client) -> None:
    (part,) = client["echo"].stream(IN=np.array([b"a", b"bc"], object), request_id="7")

    assert part.OUT.tolist() == [b"a", b"bc"]
    assert part.id == "7"


def test_responses_come_one_by_one(client: Client) -> None:
    given = inputs(2)
    given["DELAY"][1] = 2000
    started = time.monotonic()
    responses = client["repeat"].stream(given)

    next(responses)

    assert time.monotonic() - started < 2, "the first response waited for the second"
    responses.close()


def test_a_call_of_a_decoupled_model_is_refused(client: Client) -> None:
    with pytest.raises(Unsupported, match="decoupled transaction policy"):
        client["repeat"](inputs(1))


def test_an_error_of_the_model_is_raised(client: Client) -> None:
    given = inputs(3)
    given["DELAY"] = given["DELAY"][:2]

    with pytest.raises(InvalidArgument, match="expected IN and DELAY shape to match"):
        list(client["repeat"].stream(given))


def test_an_unknown_version_is_an_error(client: Client) -> None:
    with pytest.raises(NotFound, match="version 9 is not found"):
        list(client["repeat"].stream(inputs(1), version=9))


def test_leaving_early_cancels(client: Client) -> None:
    before = client["repeat"].statistics()[0]["response_stats"]
    cancelled = sum(int(one["cancel"]["count"]) for one in before.values())

    responses = client["repeat"].stream(inputs(100_000))
    next(responses)
    responses.close()

    end = time.monotonic() + 10
    while time.monotonic() < end:
        statistics = client["repeat"].statistics()[0]["response_stats"]
        if sum(int(one["cancel"]["count"]) for one in statistics.values()) > cancelled:
            return
        time.sleep(0.01)
    raise AssertionError("the request was not cancelled")


def test_many_streams_at_once(url: str) -> None:
    async def run() -> list[int]:
        async with connect_async(url, timeout=20) as client:

            async def one(count: int) -> int:
                return len([part async for part in client["repeat"].stream(inputs(count, delay=1))])

            return await asyncio.gather(*(one(count) for count in range(20)))

    assert asyncio.run(run()) == list(range(20))


def test_an_asyncio_stream_can_be_left(url: str) -> None:
    async def run() -> int:
        async with (
            connect_async(url, timeout=20) as client,
            aclosing(client["repeat"].stream(inputs(1000))) as responses,
        ):
            async for part in responses:
                if part.IDX[0] == 5:
                    return int(part.OUT[0])
        return 0

    assert asyncio.run(run()) == 15
