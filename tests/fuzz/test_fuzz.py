"""A short run of the fuzzer; tests/fuzz/fuzz_wire.py runs it for longer."""

from __future__ import annotations

import asyncio

import pytest

from fuzz.fuzz_wire import run

INPUTS = 3000


@pytest.mark.parametrize("seed", [1])
def test_mutated_inputs_cause_no_findings(seed: int) -> None:
    report = asyncio.run(run(INPUTS, seed))
    assert report.inputs == INPUTS
    assert report.answers > INPUTS // 2
    assert not report.findings, "\n\n".join(report.findings)
