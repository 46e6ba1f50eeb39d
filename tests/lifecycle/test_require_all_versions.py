"""With `require_all_versions`, a model is served with all versions that its policy selects, or not at all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backline_client.values.errors import Unavailable
from support import models

Homes = Callable[..., Any]


def versions(repository: Path, *names: str, policy: str = "version_policy { all {} }") -> None:
    """Versions of add1, each of which adds its own number."""
    for name in names:
        models.add1(repository, version=name, constant=float(name))
    (repository / "add1" / "config.pbtxt").write_text(policy)


def break_version(repository: Path, version: str) -> None:
    (repository / "add1" / version).mkdir(exist_ok=True)
    (repository / "add1" / version / "model.onnx").write_bytes(b"not a model")


@pytest.mark.parametrize("required", [False, True])
def test_a_version_that_fails_at_the_start_keeps_the_others_from_serving_only_if_all_are_required(
    home: Homes, repository: Path, required: bool
) -> None:
    async def scenario() -> None:
        versions(repository, "1", "3")
        break_version(repository, "2")
        models.add1(repository, name="other", constant=7.0)

        async with home(repository, require_all_versions=required) as server:
            shown = "UNAVAILABLE" if required else "READY"
            await server.until(lambda: server.states() == {"1": shown, "2": "UNAVAILABLE", "3": shown})
            assert await server.answer("other") == 7
            if required:
                with pytest.raises(Unavailable, match="because version 2 of the model failed to load"):
                    await server.answer(version="1")
            else:
                assert await server.answer(version="1") == 1

    asyncio.run(scenario())


def test_when_the_version_is_mended_all_are_served(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        break_version(repository, "2")
        async with home(repository, mode="poll", require_all_versions=True) as server:
            models.add1(repository, version="2", constant=2.0)

            await server.until(lambda: server.states() == {"1": "READY", "2": "READY"})

            assert [await server.answer(version=version) for version in "12"] == [1, 2]

    asyncio.run(scenario())


def test_new_versions_of_which_one_fails_leave_those_that_serve(home: Homes, repository: Path) -> None:
    """Also the version that the policy no longer selects, as the new selection is never complete."""

    async def scenario() -> None:
        versions(repository, "1", "2", policy="version_policy { latest { num_versions: 2 } }")
        async with home(repository, mode="poll", require_all_versions=True) as server:
            break_version(repository, "3")
            await server.until(lambda: server.states().get("3") == "UNAVAILABLE")
            assert server.states() == {"1": "READY", "2": "READY", "3": "UNAVAILABLE"}
            assert await server.answer() == 2

    asyncio.run(scenario())


def test_retries_are_awaited_before_the_model_is_given_up(home: Homes, repository: Path) -> None:
    async def scenario() -> None:
        versions(repository, "1")
        break_version(repository, "2")

        async with home(repository, require_all_versions=True, load_retries=1) as server:
            await server.until(lambda: server.states() == {"1": "UNAVAILABLE", "2": "UNAVAILABLE"})

    asyncio.run(scenario())
