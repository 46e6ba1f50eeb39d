"""`backline models` against a live server."""

from __future__ import annotations

import getpass
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from typing import TypeAlias

import pytest

from backline_client.client import Client, connect
from backline_client.client.records import ModelIndex
from support import models
from support.repositories import put
from support.server import ServerProcess, serve

Run: TypeAlias = Callable[..., "CompletedProcess[str]"]
#: Creates a model with versions 1 to n in the repository; returns its name.
MakeModel: TypeAlias = Callable[..., str]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("controlled")


@pytest.fixture(scope="module")
def controlled(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server in mode explicit."""
    folder = tmp_path_factory.mktemp("server")
    with serve(
        repository, folder / "log", "--model-control-mode", "explicit", "--state-dir", str(folder / "state")
    ) as running:
        yield running


@pytest.fixture(scope="module")
def client(controlled: ServerProcess) -> Iterator[Client]:
    """Prepares models for a command; faster than commands."""
    with connect(controlled.url) as connected:
        yield connected


@pytest.fixture(scope="module")
def known(repository: Path, client: Client) -> str:
    """A model with version 3 loaded, and version 2 by its label canary."""
    for version in "123":
        models.add1(repository, "known_model", version)
    client.load("known_model")
    client.set_label("known_model", "canary", "2")
    return "known_model"


@pytest.fixture
def make_model(repository: Path, request: pytest.FixtureRequest) -> MakeModel:
    def make(versions: int = 3) -> str:
        name = f"model_{abs(hash(request.node.nodeid))}"
        for version in range(1, versions + 1):
            models.add1(repository, name, str(version), constant=float(version))
        return name

    return make


@pytest.fixture
def run(backline: Run, controlled: ServerProcess) -> Run:
    """Runs a command against the server, which must succeed."""

    def successful(*arguments: object) -> CompletedProcess[str]:
        done = backline("models", *arguments, "--url", controlled.url)
        assert done.returncode == 0, done.stderr
        return done

    return successful


def entries(client: Client, name: str) -> dict[str, ModelIndex]:
    """The list entries of a model, by version."""
    return {entry.version: entry for entry in client.models() if entry.name == name}


def test_show_says_where_each_value_of_the_configuration_comes_from(
    run: Run, client: Client, repository: Path, make_model: MakeModel
) -> None:
    name = make_model(1)
    (repository / name / "config.pbtxt").write_text("max_batch_size: 4\n")

    def origin(path: str) -> tuple[str, str]:
        values = json.loads(run("show", name, "--origins", "--json").stdout)
        return next((one["origin"], one["where"]) for one in values if one["path"] == path)

    client.load(name)
    assert origin("max_batch_size") == ("file", f"{repository.name}/{name}/config.pbtxt:1:1")
    assert origin("backend") == ("model", "")
    assert origin("optimization.input_pinned_memory.enable") == ("default", "")
    client.load(name, config={"max_batch_size": 2})
    assert origin("max_batch_size") == ("override", "load parameter 'config'")
    assert "load parameter 'config'" in run("show", name, "--origins").stdout


@pytest.mark.parametrize(
    "name", ["list", "show", "load", "unload", "refresh", "label", "promote", "rollback", "history"]
)
def test_every_command_has_help_with_examples_and_json(backline: Run, name: str) -> None:
    done = backline("models", name, "--help")
    assert f"Examples:\n    backline models {name}" in done.stdout
    assert "--json" in done.stdout


def test_load_and_unload(run: Run, client: Client, make_model: MakeModel) -> None:
    name = make_model()
    loaded = run("load", name)
    assert loaded.stdout.splitlines()[1].split()[:3] == [name, "3", "READY"]
    assert entries(client, name)["3"].ready
    run("unload", name)
    assert not any(entry.ready for entry in entries(client, name).values())


def test_load_and_unload_as_json(run: Run, make_model: MakeModel) -> None:
    name = make_model()
    (entry,) = [entry for entry in json.loads(run("load", name, "--json").stdout) if entry["ready"]]
    assert (entry["name"], entry["version"], entry["state"]) == (name, "3", "READY")
    assert not [entry for entry in json.loads(run("unload", name, "--json").stdout) if entry["ready"]]


def test_a_single_version_is_loaded_and_unloaded(run: Run, client: Client, make_model: MakeModel) -> None:
    name = make_model()
    client.load(name)
    run("load", name, "--model-version", "1")
    assert {version for version, entry in entries(client, name).items() if entry.ready} == {"1", "3"}
    run("unload", name, "--model-version", "3")
    assert {version for version, entry in entries(client, name).items() if entry.ready} == {"1"}


def test_a_model_is_loaded_from_local_files(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    name = f"{make_model(1)}_files"
    config = tmp_path / "config.json"
    config.write_text('{"backend": "onnxruntime", "max_batch_size": 4, "dynamic_batching": {}}')
    file = models.add1(tmp_path, "elsewhere")
    run("load", name, "--config", f"@{config}", "--file", f"1/model.onnx={file}")
    shown = run("show", name).stdout
    assert "largest batch  4" in shown
    assert "\nscheduling     up to 4 together, no delay\nbecause  " in shown


def test_a_load_shows_the_models_memory(run: Run, repository: Path, make_model: MakeModel) -> None:
    name = make_model(0)
    models.slow(repository, name, size=1024, layers=2)
    assert "MiB" in run("load", name).stdout


def test_the_list_shows_labels_and_the_default(run: Run, known: str) -> None:
    lines = [line.split() for line in run("list").stdout.splitlines()]
    assert [known, "2", "READY", "canary"] in [line[:4] for line in lines]
    assert [known, "3", "READY", "(default)"] in [line[:4] for line in lines]
    found = {
        entry["version"]: entry
        for entry in json.loads(run("list", "--json").stdout)
        if entry["name"] == known
    }
    assert (found["2"]["labels"], found["3"]["default"]) == (["canary"], True)


def test_labels_are_set_moved_shown_and_removed(run: Run, client: Client, make_model: MakeModel) -> None:
    name = make_model()
    client.load(name)
    assert "has no labels" in run("label", name).stdout
    assert run("label", name, "canary", "2").stdout == f"canary of {name}: (none) -> 2\n"
    assert run("label", name, "canary", "3", "--expect", "2").stdout == f"canary of {name}: 2 -> 3\n"
    assert run("label", name).stdout.split() == ["label", "version", "canary", "3"]
    assert json.loads(run("label", name, "--json").stdout) == {"canary": "3"}
    removed = json.loads(run("label", name, "canary", "--remove", "--json").stdout)
    assert (removed["action"], removed["label"], removed["before"], removed["version"]) == (
        "unlabel",
        "canary",
        "3",
        "",
    )


def test_promote_and_rollback(run: Run, client: Client, make_model: MakeModel) -> None:
    name = make_model()
    client.load(name)
    assert run("promote", name, "3").stdout == f"stable of {name}: (none) -> 3\n"
    assert run("promote", name, "1").stdout == f"stable of {name}: 3 -> 1\n"
    assert entries(client, name)["1"].default
    change = json.loads(run("rollback", name, "--json").stdout)
    assert (change["before"], change["version"]) == ("1", "3")
    assert entries(client, name)["3"].default
    assert json.loads(run("promote", name, "1", "--json").stdout)["version"] == "1"
    assert run("rollback", name).stdout == f"stable of {name}: 1 -> 3\n"


def test_the_history_shows_who_changed_what(run: Run, make_model: MakeModel) -> None:
    name = make_model()
    run("load", name)
    run("promote", name, "2")
    assert "(none) -> 2" in run("history", name).stdout
    changes = json.loads(run("history", name, "--json").stdout)
    assert [change["action"] for change in changes] == ["promote", "load"]
    assert all(
        change["who"].startswith(f"{getpass.getuser()}@") and change["who"].endswith(" (127.0.0.1)")
        for change in changes
    )
    assert len(json.loads(run("history", name, "--limit", "1", "--json").stdout)) == 1


def test_refresh_finds_a_new_model(run: Run, make_model: MakeModel) -> None:
    name = make_model()
    assert f"\n{name} " in run("refresh").stdout
    assert name in {entry["name"] for entry in json.loads(run("refresh", "--json").stdout)}


def test_refresh_fails_if_a_model_that_it_loads_fails(backline: Run, tmp_path: Path) -> None:
    models.add1(tmp_path / "models")
    options = ("--model-control-mode", "poll", "--repository-poll-secs", "3600")
    with serve(tmp_path / "models", tmp_path / "log", *options) as server:
        assert backline("models", "refresh", "--url", server.url).returncode == 0
        put(tmp_path / "models" / "damaged" / "1" / "model.onnx", "not a model")
        done = backline("models", "refresh", "--url", server.url)
        listed = backline("models", "refresh", "--json", "--url", server.url)

    assert done.returncode == 1
    assert "failed to load 'damaged' version 1 (" in done.stderr
    assert "add1" in done.stdout
    assert listed.returncode == 1
    assert {entry["name"] for entry in json.loads(listed.stdout)} == {"add1", "damaged"}


def test_show_lists_states_and_labels_of_versions(run: Run, known: str) -> None:
    assert "\n2        READY  canary" in run("show", known).stdout
    document = json.loads(run("show", known, "--model-version", "canary", "--json").stdout)
    assert {entry["version"]: entry["labels"] for entry in document["states"] if entry["ready"]} == {
        "2": ["canary"],
        "3": [],
    }


def test_every_command_works_over_grpc(
    backline: Run, controlled: ServerProcess, make_model: MakeModel
) -> None:
    name = make_model()

    def over_grpc(*arguments: str) -> str:
        done = backline("models", *arguments, "--url", controlled.grpc_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "3        READY" in over_grpc("load", name)
    assert "1        READY" in over_grpc("load", name, "--model-version", "1")
    assert over_grpc("label", name, "canary", "1") == f"canary of {name}: (none) -> 1\n"
    over_grpc("promote", name, "3")
    over_grpc("promote", name, "1")
    assert over_grpc("rollback", name) == f"stable of {name}: 1 -> 3\n"
    assert "canary" in over_grpc("list")
    assert "canary" in over_grpc("show", name)
    assert len(over_grpc("history", name).splitlines()) == 7
    assert name in over_grpc("refresh")
    assert "READY" not in over_grpc("unload", name)


def test_a_failed_load_gives_the_reason_and_keeps_what_is_served(
    client: Client, backline: Run, controlled: ServerProcess, make_model: MakeModel, repository: Path
) -> None:
    name = make_model(1)
    client.load(name)
    broken = repository / name / "2" / "model.onnx"
    broken.parent.mkdir()
    broken.write_bytes(b"no model")
    done = backline("models", "load", name, "--url", controlled.url)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert not done.stderr.endswith(";\n")
    assert f"Error: load failed for model '{name}': version 2 is at UNAVAILABLE state: " in done.stderr
    assert str(broken.relative_to(repository.parent)) in done.stderr
    found = entries(client, name)
    assert found["1"].ready
    assert str(broken.relative_to(repository.parent)) in found["2"].reason


def test_a_failed_first_load_gives_the_reason(
    run: Run, backline: Run, controlled: ServerProcess, make_model: MakeModel, repository: Path
) -> None:
    name = make_model(0)
    broken = repository / name / "1" / "model.onnx"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no model")
    done = backline("models", "load", name, "--url", controlled.url)
    assert f"Error: load failed for model '{name}': version 1 is at UNAVAILABLE state: " in done.stderr
    models.add1(repository, name)
    assert "1        READY" in run("load", name).stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("load", "knwn_model"), "Did you mean 'known_model'?"),
        (("unload", "knwn_model"), "Did you mean 'known_model'?"),
        (("label", "knwn_model"), "Did you mean 'known_model'?"),
        (("promote", "knwn_model", "1"), "Did you mean 'known_model'?"),
        (("history", "knwn_model"), "Did you mean 'known_model'?"),
        (("show", "knwn_model"), "Did you mean 'known_model'?"),
        (("promote", "known_model", "9"), "available: 1, 2, 3"),
        (("load", "known_model", "--model-version", "9"), "available: 1, 2, 3"),
        (("show", "known_model", "--model-version", "canari"), "Did you mean 'canary'?"),
        (("label", "known_model", "canary", "3", "--expect", "1"), "nothing was changed"),
        (("label", "known_model", "a/b", "3"), "'a/b' cannot be a label"),
        (("rollback", "known_model"), "so it cannot be rolled back; point it to a version, or remove it"),
    ],
)
def test_unknown_names_get_a_hint(
    backline: Run, controlled: ServerProcess, known: str, arguments: tuple[str, ...], text: str
) -> None:
    done = backline("models", *arguments, "--url", controlled.url)
    assert done.returncode == 1
    assert text in done.stderr
    assert "It has" not in done.stderr  # the error lists the versions already, or is not about a name
    assert done.stderr.startswith("Error: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("lod", "x"), "No such command 'lod'. Did you mean 'load'?"),
        (("load", "x", "--file", "1/model.onnx=x"), "--file needs --config"),
        (("load", "x", "--config", "{"), "the configuration is not JSON"),
        (("load", "x", "--config", "[]"), "expected an object"),
        (("load", "x", "--config", "@/nowhere.json"), "cannot read '/nowhere.json'"),
        (("load", "x", "--config", "{}", "--file", "1/model.onnx"), "is not of the form PATH=FILE"),
        (("label", "x", "canary"), "Give either a VERSION for the label, or --remove"),
        (("label", "x", "canary", "1", "--remove"), "Give either a VERSION for the label, or --remove"),
        (("label", "x", "--remove"), "--remove needs a LABEL"),
        (("history", "--limit", "0"), "'0' is not a whole number from 1 to 10000"),
    ],
)
def test_wrong_usage(backline: Run, arguments: tuple[str, ...], text: str) -> None:
    done = backline("models", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_changes_are_refused_in_mode_none(backline: Run, server: ServerProcess) -> None:
    done = backline("models", "load", "add1", "--url", server.url)
    assert done.returncode == 1
    assert "this server's mode is none" in done.stderr
    assert "start it with --model-control-mode explicit" in done.stderr
    done = backline("models", "promote", "add1", "1", "--url", server.url)
    assert "start it with --model-control-mode poll or explicit" in done.stderr
