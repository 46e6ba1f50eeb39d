"""The engine in a program: with blocks, options, and inproc URLs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import backline
from backline_client import Client
from backline_client.client.errors import ConnectionFailed
from backline_client.values.errors import InvalidArgument, NotFound, Unavailable
from support import models
from support.repositories import put
from support.waiting import until

ONES = np.ones((1, 16), np.float32)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models, "add1" and "other", and a broken one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    models.add1(tmp_path / "models")
    models.add1(tmp_path / "models", "other")
    put(tmp_path / "models" / "broken" / "1" / "model.onnx", "not a model")
    return tmp_path / "models"


def states(client: Client) -> dict[str, str]:
    return {model.name: model.state for model in client.models()}


def test_a_with_block_loads_the_models_and_unloads_them(repository: Path) -> None:
    with backline.Embedded(repository) as client:
        np.testing.assert_array_equal(client["add1"](ONES)["OUTPUT0"], ONES + 1)
        assert states(client) == {"add1": "READY", "other": "READY", "broken": "UNAVAILABLE"}
        client.unload("other")
        until(lambda: states(client)["other"] == "UNAVAILABLE")
    with pytest.raises(ConnectionFailed, match="is closed"):
        client["add1"](ONES)


async def test_an_async_with_block_runs_on_the_current_loop(repository: Path) -> None:
    async with backline.Embedded([repository], models=["add1"]) as client:
        assert (await client["add1"](ONES))["OUTPUT0"].shape == (1, 16)
        with pytest.raises(NotFound):
            await client["other"](ONES)
        await client.load("other")
        await client["other"](ONES)


def test_options_are_those_of_a_server(repository: Path) -> None:
    options = backline.LifecycleOptions(memory_budget=64 << 30, namespacing=True)
    embedded = backline.Embedded(repository, options, models=["add1"])
    with embedded as client:
        assert [model.name for model in client.models() if model.state == "READY"] == ["add1"]
        assert embedded.engine.is_ready("add1", "")


def test_a_program_may_insist_that_every_model_loads(repository: Path) -> None:
    with (
        pytest.raises(Unavailable, match="not all models could be loaded"),
        backline.Embedded(repository, exit_on_error=True),
    ):
        pass


def test_an_engine_serves_one_block(repository: Path) -> None:
    embedded = backline.Embedded(repository, models=["add1"])
    with embedded, pytest.raises(Unavailable, match="only one `with` block"), embedded:
        pass
    with pytest.raises(Unavailable, match="only one `with` block"), embedded:
        pass


def test_a_repository_that_is_missing_is_reported_and_leaves_nothing_running(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"), backline.Embedded(tmp_path / "missing"):
        pass


def test_a_model_name_that_no_model_can_have_is_refused(repository: Path) -> None:
    """Otherwise the model would be unavailable, with advice to rename its folder."""
    with pytest.raises(InvalidArgument, match="the name of the model has '/'"):
        backline.Embedded(repository / "add1", model_name="a/b")


def test_a_url_names_models_and_options(repository: Path) -> None:
    query = f"model=add1&memory_budget=64GiB&cache_folder={repository.parent / 'cache'}"
    with backline.connect(f"inproc://{repository}?{query}") as client:
        assert {name for name, state in states(client).items() if state == "READY"} == {"add1"}
        client.load("other")
        assert states(client)["other"] == "READY"


def test_a_path_may_contain_a_question_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    models.add1(tmp_path / "why?")
    with backline.connect(f"inproc://{tmp_path}/why%3F") as client:
        assert states(client) == {"add1": "READY"}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("modle=add1", "an inproc URL has no option 'modle'; did you mean 'model'?"),
        ("x=1", "an inproc URL has no option 'x'; expected one of model, namespacing"),
        ("memory_budget=much", "memory_budget=much in an inproc URL: 'much' is not a size"),
        ("trust_pickle=1", "trust_pickle=1 in an inproc URL: expected true or false"),
        ("load_threads=two", "load_threads=two in an inproc URL: expected a whole number"),
    ],
)
def test_a_mistake_in_a_url_is_named(repository: Path, query: str, message: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        backline.connect(f"inproc://{repository}?{query}")
    assert message in refused.value.message


def test_a_client_of_a_server_does_not_import_the_engine() -> None:
    code = (
        "import sys, backline; backline.connect('http://localhost:1').close();"
        "print([name for name in sys.modules if 'lifecycle' in name or 'embedded' in name])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_an_object_of_the_program_is_refused_with_what_serves_it() -> None:
    with pytest.raises(InvalidArgument, match=r"object of type function: .* call backline\.serve"):
        backline.Embedded(lambda x: x)  # type: ignore[arg-type]
