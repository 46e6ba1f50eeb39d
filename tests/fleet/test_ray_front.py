"""The repository of a server in front of a deployment on Ray, without Ray."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from backline.cli.serve.engine import RayOptions, in_front
from backline.lifecycle.options import LifecycleOptions
from backline.plugins.ray.front import Front, RemoteRepository
from backline.plugins.ray.spec import replica_options
from backline.server import ServerOptions
from backline_client.client import ray_directory
from backline_client.values.errors import InvalidArgument

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
            configuration = (repository.folder / name / "config.pbtxt").read_text()
            assert f'"ray://fleet/{name}"' in configuration
            assert "version_policy { all {} }" in configuration  # the default is the newest version


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


def test_the_server_in_front_gets_the_options_about_clients_and_shares_the_labels(
    repository: RemoteRepository, tmp_path: Path
) -> None:
    front = Front.__new__(Front)
    front._repository = repository
    lifecycle = LifecycleOptions(labels="repository", memory_budget=1, complete_configs=True)
    given = ServerOptions((tmp_path,), lifecycle, model_name="a", host="0.0.0.0", auth=Path("keys.toml"))

    options = front.options(given)

    assert (options.host, options.auth, options.model_name) == ("0.0.0.0", Path("keys.toml"), "")
    assert options.repositories == (repository.folder,)
    assert options.lifecycle == LifecycleOptions(
        mode="poll", poll_seconds=2.0, labels=replica_options(given).lifecycle.labels
    )


def test_keys_that_would_not_protect_the_replicas_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_directory, "require_ray", lambda: None)
    engine = RayOptions("backline", None, 1, None, {}, "", shards=False, keep_sequences=False)
    open_to_all = ServerOptions(("models",))

    monkeypatch.setenv("BACKLINE_API_KEY", "k" * 32)
    with (
        pytest.raises(InvalidArgument, match="pass a file of keys with --auth"),
        in_front(open_to_all, engine),
    ):
        pass
    monkeypatch.delenv("BACKLINE_KEY", raising=False)
    keyed = replace(open_to_all, auth=Path("keys.toml"))
    with pytest.raises(InvalidArgument, match="set BACKLINE_KEY to a key"), in_front(keyed, engine):
        pass
