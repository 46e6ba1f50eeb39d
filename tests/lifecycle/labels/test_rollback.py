"""Rollbacks go back along a label's history, to versions that are still loaded."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.lifecycle.labels import labelling
from backline.lifecycle.labels.labelling import earlier_version
from backline_client.values.control import STABLE, Action, Change, LabelMove
from backline_client.values.errors import InvalidArgument, NotFound
from support import models

Homes = Callable[..., Any]


def add(repository: Path, *versions: str) -> None:
    for version in versions:
        models.add1(repository, version=version, constant=float(version))


async def promote(server: Any, *versions: str, label: str = STABLE) -> None:
    for version in versions:
        await server.lifecycle.move_label(LabelMove("promote", "add1", label, version), who="Ada")


async def roll_back(server: Any, label: str = STABLE) -> str:
    change = await server.lifecycle.move_label(LabelMove("rollback", "add1", label), who="Ada")
    return str(change.version)


def loads(server: Any) -> int:
    return int(server.engine.loads["add1"].succeeded)


def ready(server: Any) -> set[str]:
    return {version for version, state in server.states().items() if state == "READY"}


def test_rollbacks_go_back_to_the_first_version(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with home(repository, mode="poll") as server:
            await promote(server, "1", "2", "3")
            assert [await roll_back(server), await roll_back(server)] == ["2", "1"]
            with pytest.raises(InvalidArgument, match="has no earlier version"):
                await roll_back(server)
            assert await server.answer() == 1
            await promote(server, "3")
            assert await roll_back(server) == "1"

    asyncio.run(scenario())


def test_a_rollback_after_a_promotion_needs_no_load(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with home(repository, mode="poll") as server:
            await promote(server, "2", "3")
            before = loads(server)
            reason = server.engine.find("add1", "2").reason
            assert reason == "stays loaded for a while, for a rollback of 'stable'"
            assert await roll_back(server) == "2"
            assert await server.answer() == 2
            assert loads(server) == before
            assert server.engine.find("add1", "2").reason == ""

    asyncio.run(scenario())


def test_only_the_version_before_the_last_promotion_stays_loaded(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3", "4")
        async with home(repository, mode="poll") as server:
            await promote(server, "1", "2", "3")
            await server.until(lambda: ready(server) == {"2", "3", "4"})
            await promote(server, "1", label="canary")
            await promote(server, "4", label="canary")
            assert ready(server) == {"1", "2", "3", "4"}
            await roll_back(server)
            await server.until(lambda: ready(server) == {"1", "2", "4"})

    asyncio.run(scenario())


@pytest.mark.parametrize("seconds", [0, 0.05])
def test_the_previous_version_is_unloaded_after_the_time_set(
    home: Homes, repository: Path, seconds: float
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="poll", keep_previous_seconds=seconds) as server:
            await promote(server, "1", "2")
            await server.until(lambda: ready(server) == {"2"})
            before = loads(server)
            assert await roll_back(server) == "1"
            assert loads(server) == before + 1

    asyncio.run(scenario())


def test_a_version_kept_for_a_rollback_can_be_unloaded_by_request(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            await promote(server, "1", "2")
            assert ready(server) == {"1", "2"}
            await server.lifecycle.unload("add1", "1", who="Ada")
            assert ready(server) == {"2"}
            assert await roll_back(server) == "1"
            assert await server.answer() == 1

    asyncio.run(scenario())


def test_a_rollback_to_a_version_that_is_gone_changes_nothing(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="poll", keep_previous_seconds=0) as server:
            await promote(server, "1", "2")
            shutil.rmtree(repository / "add1" / "1")
            await server.lifecycle.refresh()
            await server.until(lambda: ready(server) == {"2"})
            with pytest.raises(NotFound, match="cannot point to version 1 of 'add1', which does not exist"):
                await roll_back(server)
            assert await server.answer() == 2

    asyncio.run(scenario())


def move(action: Action, before: str, after: str, label: str = STABLE) -> Change:
    return Change(0.0, "Ada", action, "m", after, label, before)


def newest_first(*changes: Change) -> list[Change]:
    return list(reversed(changes))


def test_a_rollback_returns_a_removed_label() -> None:
    history = newest_first(move("promote", "", "1"), move("promote", "1", "2"), move("unlabel", "2", ""))
    assert earlier_version(history, STABLE, "") == "2"


def test_a_rollback_undoes_a_move_that_the_history_does_not_have() -> None:
    history = newest_first(move("promote", "", "1"), move("promote", "1", "2"))
    assert earlier_version(history, STABLE, "9") == "2"


def test_a_promotion_to_the_same_version_and_other_labels_are_no_steps_back() -> None:
    history = newest_first(
        move("promote", "", "1"),
        move("promote", "1", "2"),
        move("promote", "2", "2"),
        move("label", "", "7", "canary"),
        Change(0.0, "Ada", "load", "m", "3"),
    )
    assert earlier_version(history, STABLE, "2") == "1"


def test_a_history_that_begins_late_still_leads_back() -> None:
    assert earlier_version([move("rollback", "3", "2")], STABLE, "2") == ""
    assert earlier_version([move("promote", "2", "3")], STABLE, "3") == "2"


@given(st.lists(st.sampled_from(["1", "2", "3", "rollback"]), max_size=30))
def test_rollbacks_behave_as_an_undo_stack(steps: list[str]) -> None:
    history: list[Change] = []
    stack: list[str] = []
    for step in steps:
        now = stack[-1] if stack else ""
        if step == "rollback":
            expected = stack[-2] if len(stack) > 1 else ""
            assert earlier_version(history, STABLE, now) == expected
            if expected:
                stack.pop()
                history.insert(0, move("rollback", now, expected))
        else:
            history.insert(0, move("promote", now, step))
            if step != now:
                stack.append(step)


def test_a_canary_gets_only_the_requests_that_name_it(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1")
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            add(repository, "2")
            await promote(server, "2", label="canary")
            assert await server.answer(version="canary") == 2
            assert await server.answer() == 1
            await server.lifecycle.move_label(LabelMove("unlabel", "add1", "canary"), who="Ada")
            await server.until(lambda: "READY" in server.states().values())
            assert await server.answer() == 1
            await server.lifecycle.load("add1", who="Ada")
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_a_model_has_a_limited_number_of_labels(
    home: Homes, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labelling, "MOST_LABELS", 2)

    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            await promote(server, "1", label="a")
            await promote(server, "1", label="b")
            with pytest.raises(InvalidArgument, match="has 2 labels, and at most 2 are allowed; remove one"):
                await promote(server, "1", label="c")
            await promote(server, "2", label="b")  # to move one needs no room

    asyncio.run(scenario())
