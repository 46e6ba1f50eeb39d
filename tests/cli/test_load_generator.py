"""The load generator, with a sender of known speed."""

from __future__ import annotations

import asyncio

import pytest

from backline.cli.load_generator import closed_loop, open_loop
from backline_client.values.errors import Unavailable


def test_a_stall_counts_for_every_delayed_request() -> None:
    """One request of 0.3 s blocks the others.

    A generator that waited for it would count a single slow request (coordinated omission).
    """

    async def main() -> list[int]:
        gate = asyncio.Lock()
        first = True

        async def send() -> None:
            nonlocal first
            async with gate:
                if first:
                    first = False
                    await asyncio.sleep(0.3)

        return list((await open_loop(send, 100, 0.5, "constant")).latencies)

    latencies = asyncio.run(main())
    assert len(latencies) == pytest.approx(50, abs=1)
    slow = [latency for latency in latencies if latency > 50_000_000]
    assert len(slow) >= 20  # those due in the first 0.25 s
    assert max(latencies) >= 290_000_000


def test_a_closed_loop_keeps_the_concurrency() -> None:
    async def main() -> int:
        running = most = 0

        async def send() -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.001)
            running -= 1

        await closed_loop(send, 7, 0.05)
        return most

    assert asyncio.run(main()) == 7


def test_poisson_arrivals_have_the_requested_rate() -> None:
    async def main() -> int:
        async def send() -> None:
            return None

        return len((await open_loop(send, 2000, 0.5, "poisson")).latencies)

    assert asyncio.run(main()) == pytest.approx(1000, rel=0.15)


def test_errors_are_counted_separately() -> None:
    async def main() -> tuple[dict[str, int], int]:
        count = 0

        async def send() -> None:
            nonlocal count
            count += 1
            await asyncio.sleep(0)
            if count % 2:
                raise Unavailable("full")

        load = await closed_loop(send, 1, 0.05)
        return dict(load.errors), len(load.latencies)

    errors, answered = asyncio.run(main())
    assert list(errors) == ["Unavailable"]
    assert answered > 0
