"""The states in which versions are listed that are not loaded."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.dialects.open_inference.metadata import model_index, model_listing
from backline.lifecycle import executor, served_model
from backline_client.client.records import answers
from support import models

Homes = Callable[..., Any]


def listed(server: Any) -> dict[str, str]:
    """The states in the repository index, which are those of the list."""
    index = {
        one["version"]: one["state"]
        for one in model_index(server.engine, lambda name: True, only_ready=False)
    }
    assert index == {one["version"]: one["state"] for one in model_listing(server.engine, lambda name: True)}
    return index


def test_a_version_that_a_request_loads_is_on_demand(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        models.add1(repository)
        (repository / "add1" / "model.toml").write_text('load = "on_demand"\nidle_unload_seconds = 0.1\n')
        async with home(repository) as server:
            assert listed(server) == {"1": "ON_DEMAND"}
            await server.answer()
            await server.until(lambda: listed(server) == {"1": "ON_DEMAND"})
            assert "unloaded after it was idle" in server.engine.find("add1").reason

    asyncio.run(scenario())


def test_versions_that_answer_are_told_from_the_state_alone() -> None:
    assert [answers(state) for state in ("READY", "ON_DEMAND", "UNAVAILABLE", "")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("mode", ["poll", "explicit"])
def test_a_version_that_the_policy_gave_up_is_listed_for_a_while(
    home: Homes, repository: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()

    async def scenario() -> None:
        models.add1(repository, version="1")
        async with home(repository, mode=mode, load_models=("add1",)) as server:
            models.add1(repository, version="2")
            await (
                server.lifecycle.load("add1", who="Ada") if mode == "explicit" else server.lifecycle.refresh()
            )
            await server.until(lambda: listed(server) == {"1": "UNAVAILABLE", "2": "READY"})
            assert server.engine.find("add1", "1").reason == "unloaded"
            for module in (executor, served_model):
                monkeypatch.setattr(module, "UNLOADED_SHOWN_SECONDS", 0.05)
            models.add1(repository, version="3")
            await (
                server.lifecycle.load("add1", who="Ada") if mode == "explicit" else server.lifecycle.refresh()
            )
            await server.until(lambda: listed(server) == {"3": "READY"})

    asyncio.run(scenario())
    assert time.monotonic() - now < 50, "the test did not wait for the usual time"


def test_a_version_that_a_request_unloaded_stays_listed(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (executor, served_model):
        monkeypatch.setattr(module, "UNLOADED_SHOWN_SECONDS", 0.0)

    async def scenario() -> None:
        models.add1(repository, version="1")
        models.add1(repository, version="2")
        (repository / "add1" / "config.pbtxt").write_text("version_policy { all { } }")
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            await server.lifecycle.unload("add1", "1", who="Ada")
            await server.until(lambda: listed(server) == {"1": "UNAVAILABLE", "2": "READY"})
            await server.lifecycle.unload("add1", who="Ada")
            await server.until(lambda: listed(server) == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"})

    asyncio.run(scenario())
