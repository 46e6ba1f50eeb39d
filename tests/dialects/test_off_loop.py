"""Work off the event loop: callers take turns by size, and small work has a lane of its own."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest

from backline.dialects import json_scan
from backline.dialects.input_plan import InputPlan
from backline.dialects.json_data import decode_data
from backline.dialects.json_scan import MAX_KEYS
from backline.dialects.off_loop import SMALL, Abandoned, OffLoop, stop_if_abandoned
from backline.embedded.function import FunctionRequest
from backline.wire.application import HttpRequest
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer
from support.models import identity_of
from support.server import serve

MIB = 1 << 20


class Held:
    """Work that takes the lane for large work until it is released."""

    def __init__(self, off_loop: OffLoop) -> None:
        self._started, self._free = threading.Event(), threading.Event()
        self.done = off_loop.submit(self._wait, 64 * MIB, "first")

    def _wait(self) -> None:
        self._started.set()
        assert self._free.wait(60)

    async def started(self) -> None:
        assert await asyncio.to_thread(self._started.wait, 60)

    def release(self) -> None:
        self._free.set()


async def order(submitted: list[tuple[str, int]]) -> list[str]:
    """Returns the callers in the order in which their work runs, if all of it waits for the lane."""
    off_loop, ran = OffLoop(), list[str]()
    held = Held(off_loop)
    await held.started()
    waiting = [
        off_loop.submit(lambda turn=turn: ran.append(turn), size, turn)  # type: ignore[misc]
        for turn, size in submitted
    ]
    held.release()
    await asyncio.gather(held.done, *waiting)
    return ran


def test_a_caller_with_much_work_delays_others_by_one_piece_of_it() -> None:
    ran = asyncio.run(order([("flood", 60 * MIB)] * 8 + [("other", 60 * MIB)]))

    assert ran.index("other") <= 1


def test_smaller_work_comes_before_larger_work_of_others() -> None:
    assert asyncio.run(order([("a", 60 * MIB), ("b", 30 * MIB), ("c", 2 * MIB)])) == ["c", "b", "a"]


def test_large_work_is_not_put_off_forever() -> None:
    ran = asyncio.run(order([("large", 60 * MIB), *[("small", 2 * MIB)] * 100]))

    assert ran.index("large") == 29  # when the others have had as many bytes


def test_work_of_a_caller_runs_in_the_order_of_its_arrival() -> None:
    async def scenario() -> list[int]:
        off_loop, ran = OffLoop(), list[int]()
        await asyncio.gather(
            *(off_loop.submit(lambda n=n: ran.append(n), (9 - n) * MIB, "a") for n in range(8))  # type: ignore[misc]
        )
        return ran

    assert asyncio.run(scenario()) == list(range(8))


def test_small_work_does_not_wait_for_large_work() -> None:
    async def scenario() -> str:
        off_loop = OffLoop()
        held = Held(off_loop)
        await held.started()
        answer = await asyncio.wait_for(off_loop.submit(lambda: "done", SMALL, "first"), 60)
        assert not held.done.done()
        held.release()
        await held.done
        return answer

    assert asyncio.run(scenario()) == "done"


def test_work_without_bytes_runs() -> None:
    async def scenario() -> list[int]:
        off_loop = OffLoop()
        return await asyncio.gather(*(off_loop.submit(lambda n=n: n, 0, "a") for n in range(3)))  # type: ignore[misc]

    assert asyncio.run(scenario()) == [0, 1, 2]


def test_an_error_reaches_the_submitter_and_the_lane_goes_on() -> None:
    def fail() -> None:
        raise ValueError("unreadable")

    async def scenario() -> int:
        off_loop = OffLoop()
        failing = off_loop.submit(fail, MIB, "a")
        following = off_loop.submit(lambda: 1, MIB, "a")
        with pytest.raises(ValueError, match="unreadable"):
            await failing
        return await following

    assert asyncio.run(scenario()) == 1


def test_work_of_a_client_that_has_left_does_not_run_and_frees_its_body() -> None:
    class Body:
        """Stands for a request of many megabytes."""

    async def scenario() -> list[str]:
        off_loop, ran = OffLoop(), list[str]()
        held = Held(off_loop)
        await held.started()
        request: HttpRequest = FunctionRequest(b"POST", b"/", b"", {}, b"")
        body = Body()
        alive = weakref.ref(body)

        def work(body: Body = body) -> None:
            ran.append("abandoned")

        off_loop.run(request, work, 2 * MIB, lambda _: ran.append("answered"))
        assert request.on_abandon is not None
        request.on_abandon()
        del body, work
        await asyncio.sleep(0)  # the future's callbacks run
        gc.collect()
        assert alive() is None
        last = off_loop.submit(lambda: ran.append("other"), 64 * MIB, "other")
        held.release()
        await asyncio.gather(held.done, last)
        return ran

    assert asyncio.run(scenario()) == ["other"]


def test_work_of_a_client_that_has_left_stops_between_its_pieces() -> None:
    async def scenario() -> bool:
        off_loop = OffLoop()
        started, left, stopped = threading.Event(), threading.Event(), threading.Event()

        def work() -> None:
            started.set()
            assert left.wait(60)
            try:
                stop_if_abandoned()
            except Abandoned:
                stopped.set()
                raise

        request: HttpRequest = FunctionRequest(b"POST", b"/", b"", {}, b"")
        off_loop.run(request, work, 2 * MIB, lambda _: None)
        assert await asyncio.to_thread(started.wait, 60)
        assert request.on_abandon is not None
        request.on_abandon()
        left.set()
        await off_loop.submit(stop_if_abandoned, 2 * MIB, "other")  # is not abandoned
        return stopped.is_set()

    assert asyncio.run(scenario())


def body(elements: int) -> bytes:
    return (
        b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,%d],"data":[%b0]}],'
        b'"parameters":{"binary_data_output":true}}' % (elements, b"0," * (elements - 1))
    )


def test_an_image_overtakes_the_large_bodies_of_the_same_address(tmp_path: Path) -> None:
    identity_of(tmp_path / "models", "any", 1)
    with serve(tmp_path / "models", tmp_path / "server.log") as server, ThreadPoolExecutor(6) as clients:

        def send(what: bytes) -> int:
            connection = HTTPConnection("127.0.0.1", server.http_port, timeout=120)
            connection.request("POST", "/v2/models/any/infer", what)
            answer = connection.getresponse()
            answer.read()
            return answer.status

        large = body(6 * MIB)
        waiting = [clients.submit(send, large) for _ in range(6)]
        wait(waiting, return_when=FIRST_COMPLETED)
        assert send(body(150_528)) == 200
        unanswered = sum(not one.done() for one in waiting)
        assert [one.result() for one in waiting] == [200] * 6
    assert unanswered


def test_json_with_too_many_keys_is_read_only_up_to_there(monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps({str(number): 0 for number in range(4 * MAX_KEYS)}).encode()
    seen: list[int] = []
    search = json_scan.parts

    def watched(text: Buffer) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for part in search(text, 4096):
            seen.append(len(part[0]))
            yield part

    monkeypatch.setattr(json_scan, "parts", watched)
    with pytest.raises(PayloadTooLarge):
        json_scan.check_keys(text)

    # The part up to the limit is read twice: for its keys, and for its depth.
    assert sum(seen) < len(text)


def test_strings_beyond_the_shape_are_not_counted() -> None:
    text = json.dumps(["a"] * 1_000_000).encode()

    with pytest.raises(InvalidArgument, match="the rest was not counted"):
        decode_data(InputPlan("x", "BYTES", (1,)), text, "$")
