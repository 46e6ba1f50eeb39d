"""Several repositories as one, without duplicate names."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from backline.lifecycle.wanted import Source, Sources
from backline.repository.local import LocalRepository
from backline.repository.repository import FoundModel
from backline_client.values.errors import InvalidArgument
from support.repositories import ONNX, put


def scan(*repositories: Path, namespacing: bool = False) -> dict[str, Source]:
    opened = [LocalRepository(path, formats=[ONNX]) for path in repositories]
    return asyncio.run(Sources(opened, namespacing=namespacing).scan(first=True))


def test_one_name_in_two_repositories_is_refused(tmp_path: Path) -> None:
    for repository in ("a", "b"):
        put(tmp_path / repository / "same" / "1" / "model.onnx")
    put(tmp_path / "b" / "other" / "1" / "model.onnx")

    sources = scan(tmp_path / "a", tmp_path / "b")

    assert sources["other"].found.problem == ""
    assert sources["same"].found.problem.startswith(
        f"model appears in two or more repositories: '{tmp_path}/a/same', '{tmp_path}/b/same'; rename"
        " or remove all but one"
    )


def test_with_namespaces_models_that_share_a_name_are_named_after_their_repository(tmp_path: Path) -> None:
    put(tmp_path / "blue" / "add" / "1" / "model.onnx")
    put(tmp_path / "green" / "add" / "1" / "model.onnx")
    put(tmp_path / "green" / "mul" / "1" / "model.onnx")

    sources = scan(tmp_path / "blue", tmp_path / "green", namespacing=True)

    assert {name: source.found.problem for name, source in sources.items()} == {
        "blue.add": "",
        "green.add": "",
        "mul": "",
    }


def test_with_namespaces_the_repository_of_each_served_model_is_known(tmp_path: Path) -> None:
    put(tmp_path / "blue" / "add" / "1" / "model.onnx")
    put(tmp_path / "green" / "add" / "1" / "model.onnx")
    put(tmp_path / "green" / "mul" / "1" / "model.onnx")
    opened = [LocalRepository(tmp_path / name, formats=[ONNX]) for name in ("blue", "green")]
    with_namespaces, without = (Sources(opened, namespacing=namespacing) for namespacing in (True, False))

    asyncio.run(with_namespaces.scan(first=True))
    asyncio.run(without.scan(first=True))

    blue, green = str(tmp_path / "blue"), str(tmp_path / "green")
    assert with_namespaces.namespaces == {"blue.add": blue, "green.add": green, "mul": green}
    assert without.namespaces == {}


def test_repositories_count_in_the_configured_order_whichever_is_read_first(tmp_path: Path) -> None:
    for name in ("blue", "green"):
        put(tmp_path / name / "add" / "1" / "model.onnx")

    class Slow(LocalRepository):
        async def scan(self) -> list[FoundModel]:
            await read.wait()
            return await super().scan()

    class Fast(LocalRepository):
        async def scan(self) -> list[FoundModel]:
            found = await super().scan()
            read.set()
            return found

    read = asyncio.Event()
    repositories = [Slow(tmp_path / "blue", formats=[ONNX]), Fast(tmp_path / "green", formats=[ONNX])]
    sources = Sources(repositories, namespacing=True)

    asyncio.run(sources.scan(first=True))

    assert list(sources.namespaces) == ["blue.add", "green.add"]
    assert sources.ambiguous == {"add": ("blue.add", "green.add")}


def test_namespaces_that_are_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="which is 'models' for both"):
        scan(tmp_path / "one" / "models", tmp_path / "two" / "models", namespacing=True)


def test_a_repository_named_twice_counts_once(tmp_path: Path) -> None:
    put(tmp_path / "r" / "m" / "1" / "model.onnx")

    sources = scan(tmp_path / "r", tmp_path / "r" / ".." / "r")

    assert sources["m"].found.problem == ""


def test_the_state_of_a_repository_says_what_the_last_scan_found(tmp_path: Path) -> None:
    put(tmp_path / "r" / "good" / "1" / "model.onnx")
    (tmp_path / "r" / "wrong").mkdir()
    (tmp_path / "r" / "wrong" / "config.pbtxt").write_text("max_batch_size: many")
    sources = Sources([LocalRepository(tmp_path / "r", formats=[ONNX])], namespacing=False)

    (before,) = sources.states("poll", 15.0)
    asyncio.run(sources.scan(first=True))
    (after,) = sources.states("poll", 15.0)
    (tmp_path / "r").rename(tmp_path / "gone")
    asyncio.run(sources.scan())
    (failed,) = sources.states("poll", 15.0)

    assert (before.models, before.scanned) == ([], 0.0)
    assert (after.models, after.versions, after.problem) == (["good", "wrong"], 1, "")
    assert list(after.failures) == ["wrong"]
    assert after.scanned > 0
    assert failed.models == after.models
    assert failed.scanned == after.scanned
    assert "does not exist" in failed.problem
