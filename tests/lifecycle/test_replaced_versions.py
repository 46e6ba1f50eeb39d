"""A version that serves is given up only when the version that replaces it is ready."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline_client.values.control import LabelMove
from backline_client.values.errors import InvalidArgument
from support import models

Homes = Callable[..., Any]


def add(repository: Path, *versions: str) -> None:
    for version in versions:
        models.add1(repository, version=version, constant=float(version))


def truncated(repository: Path, version: str) -> None:
    whole = models.add1(repository, version=version).read_bytes()
    (repository / "add1" / version / "model.onnx").write_bytes(whole[: len(whole) // 2])


def policy(repository: Path, text: str) -> None:
    (repository / "add1").mkdir(exist_ok=True)
    (repository / "add1" / "config.pbtxt").write_text(f"version_policy {{ {text} }}")


async def promote(server: Any, version: str) -> None:
    await server.lifecycle.move_label(LabelMove("promote", "add1", version=version), who="Ada")


def ready(server: Any) -> set[str]:
    return {version for version, state in server.states().items() if state == "READY"}


def test_a_truncated_version_takes_no_other_down_while_a_label_serves(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            await promote(server, "1")
            assert ready(server) == {"1", "2"}
            truncated(repository, "3")
            await server.lifecycle.refresh()
            assert ready(server) == {"1", "2"}
            assert server.states()["3"] == "UNAVAILABLE"
            assert await server.answer(version="2") == 2
            add(repository, "4")
            await server.lifecycle.refresh()
            await server.until(lambda: ready(server) == {"1", "4"})

    asyncio.run(scenario())


def test_of_several_versions_none_is_given_up_for_one_that_cannot_be_loaded(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        policy(repository, "latest { num_versions: 2 }")
        add(repository, "1", "2")
        async with home(repository, mode="poll") as server:
            truncated(repository, "3")
            await server.lifecycle.refresh()
            assert ready(server) == {"1", "2"}
            add(repository, "3")
            await server.lifecycle.refresh()
            await server.until(lambda: ready(server) == {"2", "3"})

    asyncio.run(scenario())


def test_a_changed_policy_gives_up_no_version_for_one_that_cannot_be_loaded(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        policy(repository, "latest { num_versions: 1 }")
        truncated(repository, "1")
        add(repository, "2", "3")
        async with home(repository, mode="poll") as server:
            await promote(server, "2")
            policy(repository, "specific { versions: [1] }")
            await server.lifecycle.refresh()
            assert ready(server) == {"2", "3"}

    asyncio.run(scenario())


@pytest.mark.parametrize("label", [False, True])
def test_an_explicit_load_that_fails_gives_up_no_version(home: Homes, repository: Path, label: bool) -> None:
    async def scenario() -> None:
        add(repository, "1", "2")
        async with home(repository, mode="explicit", load_models=("add1",)) as server:
            if label:
                await promote(server, "1")
            before = ready(server)
            truncated(repository, "3")
            for _ in range(2):  # the second load is a reload of what failed
                with pytest.raises(InvalidArgument, match="version 3 is at UNAVAILABLE state"):
                    await server.lifecycle.load("add1", who="Ada")
                assert ready(server) == before
            add(repository, "3")
            await server.lifecycle.load("add1", who="Ada")
            await server.until(lambda: ready(server) == ({"1", "3"} if label else {"3"}))

    asyncio.run(scenario())


def test_a_version_that_was_removed_does_not_wait_for_one_that_had_failed_before(
    home: Homes, repository: Path
) -> None:
    async def scenario() -> None:
        policy(repository, "all { }")
        add(repository, "1", "3")
        truncated(repository, "2")
        async with home(repository, mode="poll") as server:
            assert ready(server) == {"1", "3"}
            shutil.rmtree(repository / "add1" / "3")
            await server.lifecycle.refresh()
            await server.until(lambda: ready(server) == {"1"})

    asyncio.run(scenario())
