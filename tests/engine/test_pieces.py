"""Work in pieces gives other tasks their turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from time import perf_counter

from backline_client.values.tensor import in_pieces


async def test_the_event_loop_has_turns_between_pieces() -> None:
    turns = 0
    seen: list[int] = []

    def work() -> Iterator[int]:
        for number in range(4):
            until = perf_counter() + 0.001
            while perf_counter() < until:
                pass
            seen.append(turns)
            yield number

    async def others() -> None:
        nonlocal turns
        while len(seen) < 4:
            turns += 1
            await asyncio.sleep(0)

    done, _ = await asyncio.gather(in_pieces(work()), others())

    assert done == [0, 1, 2, 3]
    assert seen == [0, 1, 2, 3]


async def test_quick_work_is_done_in_one_turn() -> None:
    turned = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(turned.set_result, None)

    assert await in_pieces(range(3)) == [0, 1, 2]
    assert not turned.done()
    await turned
