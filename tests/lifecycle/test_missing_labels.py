"""Labels whose version is gone: nothing serves in its place, and every place that shows models says why."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline.dialects.open_inference.metadata import model_index, model_listing
from backline_client.values.control import LabelMove
from backline_client.values.errors import Unavailable
from support import models

Homes = Callable[..., Any]
MISSING = r"label 'stable' points to version 2, which no repository holds, so requests without a version"


def add(repository: Path, *versions: str) -> None:
    for version in versions:
        models.add1(repository, version=version, constant=float(version))


def configured_label(repository: Path, label: str, version: str) -> None:
    text = f'parameters {{ key: "backline.labels.{label}" value {{ string_value: "{version}" }} }}'
    (repository / "add1" / "config.pbtxt").write_text(text)


async def promote(server: Any, version: str, label: str = "stable") -> None:
    await server.lifecycle.move_label(LabelMove("label", "add1", label, version), who="Ada")


async def server_without_promoted_version(home: Homes, repository: Path) -> None:
    """Leaves a state folder in which `stable` points to version 2, whose files are then removed."""
    add(repository, "1", "2")
    async with home(repository, mode="poll") as server:
        await promote(server, "1")
        await promote(server, "2")
    shutil.rmtree(repository / "add1" / "2")
    add(repository, "3")


@pytest.mark.parametrize("mode", ["none", "poll", "explicit"])
def test_no_other_version_serves_in_place_of_a_missing_stable_one(
    home: Homes, repository: Path, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        await server_without_promoted_version(home, repository)
        async with home(repository, mode=mode, load_models=("add1",)) as server:
            with pytest.raises(Unavailable, match=MISSING):
                await server.answer()
            with pytest.raises(Unavailable, match=MISSING):
                await server.answer(version="stable")
            assert await server.answer(version="3") == 3
            assert not server.engine.is_ready("add1")
            assert not server.engine.ready
            index = {
                one["version"]: one for one in model_index(server.engine, lambda name: True, only_ready=False)
            }
            assert index["2"]["state"] == "UNAVAILABLE"
            assert MISSING in index["2"]["reason"]
            listing = {one["version"]: one for one in model_listing(server.engine, lambda name: True)}
            assert listing["2"]["labels"] == ["stable"]
            assert not any(one["default"] for one in listing.values())
            assert MISSING in caplog.text
            assert MISSING in next(event.reason for event in server.events if event.version == "2")

    asyncio.run(scenario())


def test_a_missing_version_serves_again_once_it_is_back_or_another_one_is_promoted(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        await server_without_promoted_version(home, repository)
        async with home(repository, mode="poll") as server:
            await promote(server, "3")
            assert await server.answer() == 3
            assert server.engine.ready
            assert "2" not in server.states()
            await promote(server, "1")
        shutil.rmtree(repository / "add1" / "1")
        async with home(repository, mode="poll") as server:
            with pytest.raises(Unavailable, match="points to version 1"):
                await server.answer()
            add(repository, "1")
            await server.lifecycle.refresh()
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_model_can_be_loaded_and_promoted_while_a_label_points_to_a_missing_version(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        await server_without_promoted_version(home, repository)
        async with home(repository, mode="explicit") as server:
            await server.lifecycle.load("add1", who="Ada")
            with pytest.raises(Unavailable, match=MISSING):
                await server.answer()
            await promote(server, "3")
            assert await server.answer() == 3

    asyncio.run(scenario())


def test_another_label_of_a_missing_version_stops_only_requests_to_itself(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        add(repository, "1")
        configured_label(repository, "canary", "4")
        async with home(repository) as server:
            assert await server.answer() == 1
            with pytest.raises(
                Unavailable, match=r"version 4, which no repository holds, so requests for it"
            ):
                await server.answer(version="canary")

    asyncio.run(scenario())


def test_the_loss_of_a_labelled_versions_files_is_a_warning_at_once(
    home: Homes, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            await promote(server, "1")
            shutil.rmtree(repository / "add1" / "1")
            await server.lifecycle.refresh()
            assert await server.answer() == 1
            gone = "label 'stable' points to version 1, whose files are gone from the repository"
            assert gone in server.engine.find("add1", "1").reason
            add(repository, "3")
            await server.lifecycle.refresh()
            assert caplog.text.count(gone) == 1

    asyncio.run(scenario())
