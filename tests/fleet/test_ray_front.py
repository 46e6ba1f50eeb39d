"""The repository of a server in front of a deployment on Ray, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from backline.ray.front import RemoteRepository

ALL = [("a", "1"), ("a", "2"), ("b", "1"), ("c", "7")]


@pytest.fixture
def repository() -> Iterator[RemoteRepository]:
    made = RemoteRepository(lambda model: f"ray://fleet/{model}")
    yield made
    made.close()


def versions(folder: Path) -> list[tuple[str, str]]:
    return sorted((path.parent.name, path.name) for path in folder.glob("*/*") if path.is_dir())


def test_the_repository_has_the_versions_that_replicas_have(repository: RemoteRepository) -> None:
    for models in (ALL[:1], ALL, ALL[1:3], ALL[3:], ALL):
        repository.write(models)

        assert versions(repository.folder) == models
        for name, _ in models:
            assert f'"ray://fleet/{name}"' in (repository.folder / name / "config.pbtxt").read_text()


def test_models_stay_while_no_replica_has_any(repository: RemoteRepository) -> None:
    repository.write(ALL)
    repository.write([])

    assert versions(repository.folder) == ALL


def test_a_change_that_failed_is_completed_by_the_next_one(repository: RemoteRepository) -> None:
    repository.write(ALL[:1])
    (repository.folder / "b").write_text("in the way of a model")
    with pytest.raises(OSError, match="/b"):
        repository.write(ALL)

    (repository.folder / "b").unlink()
    repository.write(ALL)
    assert versions(repository.folder) == ALL


def test_a_scan_never_finds_a_part_of_a_model(repository: RemoteRepository) -> None:
    parts: list[Path] = []
    ended = threading.Event()

    def scan() -> None:
        while not ended.is_set():
            parts.extend(
                model
                for model in repository.folder.iterdir()
                if not {"config.pbtxt", "1"} <= {path.name for path in model.iterdir()}
            )

    scanning = threading.Thread(target=scan)
    scanning.start()
    try:
        for count in range(1, 200):
            repository.write([(f"model{number}", "1") for number in range(count)])
    finally:
        ended.set()
        scanning.join()

    assert parts == []
