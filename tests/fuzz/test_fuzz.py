"""A short run of the fuzzer; the long one is tests/fuzz/fuzz_wire.py."""

from __future__ import annotations

import asyncio

import pytest

from fuzz.fuzz_wire import run

INPUTS = 3000


@pytest.mark.parametrize("seed", [1])
def test_mutated_inputs_bring_nothing_to_light(seed: int) -> None:
    report = asyncio.run(run(INPUTS, seed))
    assert report.inputs == INPUTS
    assert report.answers > INPUTS // 2
    assert not report.findings, "\n\n".join(report.findings)
