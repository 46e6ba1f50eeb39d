"""Memory used by large bodies and responses is returned to the system."""

from __future__ import annotations

import asyncio

import pytest

from backline.system.memory import resident_bytes, trim
from backline.wire.application import Application
from backline.wire.connection import Wire
from backline.wire.heap import Heap
from backline.wire.limits import Limits
from support.open_gate import OpenGate
from wire.conftest import render_error

MIB = 1 << 20


@pytest.mark.skipif(not trim(), reason="the C library cannot give memory back")
def test_memory_is_returned_while_a_slow_client_holds_some() -> None:
    async def run() -> None:
        application = Application(lambda _: None, {}, render_error, OpenGate())
        wire = Wire(application, Limits(), asyncio.get_running_loop())
        trim()  # or the blocks would reuse memory that earlier tests freed
        before = resident_bytes()
        heap = Heap(wire)
        # Below malloc's threshold for maps. Small blocks in between keep the heap from shrinking.
        blocks = [(bytearray(b"x") * 100_000, bytearray(20_000)) for _ in range(600)]
        pins = [pin for _, pin in blocks]
        wire.buffered_bytes = 60 * MIB
        await asyncio.sleep(0.6)  # Heap looks every half second
        del blocks
        assert resident_bytes() > before + 40 * MIB
        wire.buffered_bytes = 2 * MIB
        async with asyncio.timeout(10):
            while resident_bytes() > before + 30 * MIB:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        heap.close()
        assert len(pins) == 600

    asyncio.run(run())
