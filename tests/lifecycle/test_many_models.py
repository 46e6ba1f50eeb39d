"""Thousands of small models start quickly: what a load of a known model costs, counted rather than timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from backline.lifecycle.loading import loaded_here
from lifecycle.conftest import Home
from support import models
from support.calls import CallCounter

MODELS = 20
#: The most calls of Python functions that a start may make for each small ONNX model whose measurements are
#: known. A call takes about 0.7 us of a start: before you raise the number, see what the added calls buy.
MOST_CALLS = 1_200


async def test_a_start_makes_few_calls_for_each_known_model(
    repository: Path, home: type[Home], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaded_here, "SLOW_FIRST_RUN", 60.0)  # a busy machine may make these runs slow
    for number in range(MODELS):
        models.add1(repository, name=f"m{number}")
    measured = repository.parent / "state" / "measured"
    starts = 0
    while not measured.exists() or len(list(measured.iterdir())) < MODELS:
        # A busy machine may make a model look slow; its measurements are then not kept.
        starts += 1
        assert starts < 20, "the models are quick, so that one of the starts measures each of them"
        async with home(repository):
            pass

    counter = CallCounter()
    with counter.counting():
        async with home(repository) as server:
            assert server.engine.ready

    assert counter.calls / MODELS < MOST_CALLS
