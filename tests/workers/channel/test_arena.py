"""The memory that the server and a worker share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from backline.workers.channel.arena import HALF, Arena, create

MIB = 1 << 20


@pytest.fixture
def sides() -> Iterator[tuple[Arena, Arena]]:
    """The server's side and the worker's."""
    descriptor = create()
    yield Arena(descriptor, lower=True), Arena(descriptor, lower=False)
    os.close(descriptor)


def test_a_worker_cannot_claim_more_memory_than_has_been_written(sides: tuple[Arena, Arena]) -> None:
    server, worker = sides
    at, block = worker.borrow(64 * MIB)
    block[:] = 7

    assert server.read(at, 64 * MIB).sum() == 7 * 64 * MIB
    for size in (65 * MIB, HALF):
        with pytest.raises(ValueError, match="are more than the shared memory holds"):
            server.read(HALF, size)


def test_blocks_that_are_used_again_can_be_read(sides: tuple[Arena, Arena]) -> None:
    """The pages of blocks beyond those that are kept are returned to the system in between."""
    server, worker = sides
    for _ in range(2):
        lent = [worker.borrow(128 * MIB) for _ in range(3)]
        for at, block in lent:
            block[:] = 1
            assert server.read(at, block.nbytes)[-1] == 1
        for at, _ in lent:
            worker.give_back(at)


def test_a_server_keeps_no_descriptor_of_an_arena_that_is_gone() -> None:
    descriptor = create()
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    server = Arena(descriptor, lower=True)
    del server
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    os.close(descriptor)
