"""Servers that share their labels: one promotion moves all of them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from backline_client.values.control import ANY_VERSION, STABLE, LabelMove
from backline_client.values.errors import InvalidArgument, Unavailable
from support import models
from support.object_stores import Store

Homes = Callable[..., Any]


@pytest.fixture(params=["repository", "redis", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "redis":
        return f"redis://127.0.0.1:{request.getfixturevalue('redis').port}/0?key={tmp_path.name}"
    if request.param == "s3":
        store: Store = request.getfixturevalue("bucket")
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        return store.location(tmp_path.name)
    return "repository"


def add(repository: Path, *versions: str) -> None:
    for version in versions:
        models.add1(repository, version=version, constant=float(version))


@contextlib.asynccontextmanager
async def two(home: Homes, repository: Path, place: str, **options: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Two servers of one repository, with separate state folders."""
    options = {"mode": "poll", "labels": place, **options}
    state = repository.parent
    async with (
        home(repository, state_folder=state / "a", **options) as one,
        home(repository, state_folder=state / "b", **options) as other,
    ):
        yield one, other


async def promote(
    server: Any, version: str, label: str = STABLE, who: str = "Ada", expected: str = ANY_VERSION
) -> None:
    await server.lifecycle.move_label(LabelMove("promote", "add1", label, version, expected), who=who)


def points_to(server: Any, label: str = STABLE) -> str:
    return str(server.lifecycle.labels("add1").get(label, ""))


async def until(reached: Callable[[], bool], seconds: float = 20.0) -> float:
    """The seconds until a condition holds."""
    began = time.monotonic()
    while not reached():
        assert time.monotonic() < began + seconds
        await asyncio.sleep(0.01)
    return time.monotonic() - began


def test_a_promotion_at_one_server_moves_the_other(home: Homes, repository: Path, place: str) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with two(home, repository, place) as (one, other):
            await promote(one, "1")
            await until(lambda: points_to(other) == "1")
            assert await other.answer() == 1
            await promote(other, "2")
            await until(lambda: points_to(one) == "2")
            assert await one.answer() == 2
            told = [change for change in await other.history("add1") if change.label]
            assert [(change.who, change.version, change.before) for change in told] == [
                ("Ada", "2", "1"),
                ("Ada", "1", ""),
            ]
            assert told[1].detail.startswith("taken over from ")

    asyncio.run(scenario())


def test_a_rollback_at_one_server_undoes_a_promotion_at_the_other(
    home: Homes, repository: Path, place: str
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with two(home, repository, place) as (one, other):
            for server, version in ((one, "1"), (other, "2"), (one, "3")):
                await promote(server, version)
            await other.lifecycle.move_label(LabelMove("rollback", "add1", STABLE), who="Bob")
            assert points_to(other) == "2"
            await one.lifecycle.move_label(LabelMove("rollback", "add1", STABLE), who="Bob")
            assert points_to(one) == "1"
            await until(lambda: points_to(other) == "1")
            await one.lifecycle.move_label(LabelMove("unlabel", "add1", STABLE), who="Bob")
            await until(lambda: points_to(other) == "")
            assert await other.answer() == 3

    asyncio.run(scenario())


def test_a_label_that_another_server_moved_is_not_moved_from_where_it_was(
    home: Homes, repository: Path, place: str
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with two(home, repository, place) as (one, other):
            await promote(one, "1")
            await until(lambda: points_to(other) == "1")
            labelling = other.lifecycle._labelling
            async with labelling._storing:
                await promote(one, "2")
                await asyncio.to_thread(labelling._store.refresh)  # read, but not taken over yet
            with pytest.raises(InvalidArgument, match="nothing was changed"):
                await promote(other, "3", who="Bob", expected="1")

    asyncio.run(scenario())


def test_of_two_promotions_at_once_one_wins_and_the_other_is_refused(
    home: Homes, repository: Path, place: str
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with two(home, repository, place) as (one, other):
            await promote(one, "1")
            outcomes = await asyncio.gather(
                promote(one, "2", who="Ada", expected="1"),
                promote(other, "3", who="Bob", expected="1"),
                return_exceptions=True,
            )
            [refused] = [outcome for outcome in outcomes if outcome is not None]
            assert isinstance(refused, InvalidArgument)
            # The loser notices when it stores the label, or already when it begins.
            assert "nothing was changed" in refused.message
            winner = "3" if outcomes[0] is refused else "2"
            await until(lambda: points_to(one) == points_to(other) == winner)

    asyncio.run(scenario())


def test_a_server_that_loads_models_by_request_loads_the_promoted_version(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        add(repository, "1")
        async with two(home, repository, "repository", mode="explicit", load_models=("add1",)) as (
            one,
            other,
        ):
            add(repository, "2")
            await promote(one, "2", "canary")
            await until(lambda: points_to(other, "canary") == "2")
            assert await other.answer(version="canary") == 2
            assert await other.answer() == 1

    asyncio.run(scenario())


def test_a_label_stays_where_its_new_version_cannot_be_loaded(
    home: Homes, repository: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        place = str(tmp_path / "shared")
        elsewhere = tmp_path / "elsewhere"
        models.add1(elsewhere, version="1", constant=1.0)
        async with (
            home(repository, mode="poll", labels=place, state_folder=tmp_path / "a") as one,
            home(elsewhere, mode="poll", labels=place, state_folder=tmp_path / "b") as other,
        ):
            await promote(one, "1")
            await until(lambda: points_to(other) == "1")
            await promote(one, "2")
            await until(lambda: other.states().get("2") == "UNAVAILABLE")
            assert points_to(other) == "1"
            assert await other.answer() == 1
            assert "which no repository holds" in other.engine.find("add1", "2").reason

    asyncio.run(scenario())


def test_a_server_that_is_cut_off_keeps_serving_and_refuses_changes(
    home: Homes,
    repository: Path,
    bucket: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)

    async def scenario() -> None:
        add(repository, "1", "2")
        place = bucket.location("cut-off")
        async with two(home, repository, place) as (one, other):
            await promote(one, "1")
            await until(lambda: points_to(other) == "1")
            bucket.relay.cut()
            try:
                with pytest.raises(Unavailable, match="cannot be reached"):
                    await promote(one, "2")
                assert await one.answer() == await other.answer() == 1
                await until(lambda: "each label stays where it is" in caplog.text)
            finally:
                bucket.relay.mend()
            await promote(one, "2")
            await until(lambda: points_to(other) == "2")
            await until(lambda: "can be read again" in caplog.text)

    asyncio.run(scenario())


def test_labels_of_a_server_without_changes_cannot_be_shared(home: Homes, repository: Path) -> None:
    with pytest.raises(InvalidArgument, match="--model-control-mode poll or explicit, or without --labels"):
        home(repository, labels="repository")


def test_two_servers_on_one_state_folder_follow_each_other(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2", "3")
        async with (
            home(repository, mode="poll") as one,
            home(repository, mode="poll") as other,
        ):
            await promote(one, "1")
            await until(lambda: points_to(other) == "1")
            assert await other.answer() == 1
            await promote(other, "2")
            await until(lambda: points_to(one) == "2")
            assert await one.answer() == 2
            told = [change for change in await one.history("add1") if change.label]
            assert [(change.version, change.before) for change in told] == [("2", "1"), ("1", "")]

    asyncio.run(scenario())
