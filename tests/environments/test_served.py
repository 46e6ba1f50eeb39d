"""Models with their own environments in a real server."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as tritonclient

import backline
from backline_client.values.errors import BacklineError
from environments.interpreters import another_python
from support.packages import NEW_NUMPY, OLD_NUMPY
from support.repositories import put
from support.server import ServerProcess, serve

VERSIONS = """
import sys

import numpy as np

from backline.model import FP32

class Model:
    def predict(self, x: FP32[-1], name: str) -> dict:
        return {"numpy": np.__version__, "sum": float(x.sum()), "name": name, "path": sys.prefix}
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    for name, numpy in (("old", OLD_NUMPY), ("new", NEW_NUMPY), ("same", np.__version__), ("plain", "")):
        put(repository / name / "1" / "model.py", VERSIONS)
        if numpy:
            put(repository / name / "requirements.txt", f"numpy=={numpy}\n")
    log = tmp_path_factory.mktemp("log") / "server.log"
    options = ("--cache-dir", str(cache), "--model-control-mode", "explicit", "--load-model", "*")
    # Packages on the server's path must not reach the model.
    with serve(
        repository, log, *options, environment={"PYTHONPATH": ":".join(filter(None, sys.path))}
    ) as running:
        yield running


@pytest.mark.parametrize("size", [3, 100_000], ids=["in its frame", "in shared memory"])
def test_two_versions_of_one_library_are_served_together(server: ServerProcess, size: int) -> None:
    with backline.connect(server.url) as client:
        answers = {
            name: client[name]({"x": np.ones(size, np.float32), "name": np.array(["ä".encode()], object)})[
                "output"
            ][0]
            for name in ("old", "new", "plain")
        }

    for name, numpy in (("old", OLD_NUMPY), ("new", NEW_NUMPY), ("plain", np.__version__)):
        expected = {"numpy": numpy, "sum": float(size), "name": "ä"}
        assert answers[name].items() >= expected.items()


def test_the_model_list_shows_where_models_run(server: ServerProcess, cache: Path) -> None:
    with backline.connect(server.url) as client:
        placement = client["old"].config(explained=True)["parameters"]["backline.placement"]["string_value"]

    assert f"of the environment '{cache / 'environments'}" in placement


def test_startup_names_the_models_whose_environments_are_built(server: ServerProcess) -> None:
    server.wait_started()

    assert "building the environment of old version 1" in server.output
    assert "building the environment of plain" not in server.output


def test_a_cached_environment_adds_less_than_100_ms_to_a_load(
    server: ServerProcess,
) -> None:
    took: dict[str, list[float]] = {"same": [], "plain": []}
    with backline.connect(server.url) as client:
        for _ in range(7):
            for name, seconds in took.items():
                client.unload(name)
                began = time.perf_counter()
                client.load(name)
                seconds.append(time.perf_counter() - began)

    more = min(took["same"]) - min(took["plain"])  # the minimum, because other programs disturb the rest
    assert more < 0.1, took


def test_a_failed_environment_build_leaves_the_old_version_serving(tmp_path: Path, cache: Path) -> None:
    put(tmp_path / "models" / "m" / "1" / "model.py", VERSIONS)
    with serve(
        tmp_path / "models",
        tmp_path / "log",
        "--model-control-mode",
        "explicit",
        "--load-model",
        "m",
        "--cache-dir",
        str(cache),
    ) as server:
        put(tmp_path / "models" / "m" / "2" / "model.py", VERSIONS)
        put(tmp_path / "models" / "m" / "2" / "requirements.txt", "numpy==1.26.4\nnumpy==2.1.3\n")
        with backline.connect(server.url) as client:
            with pytest.raises(BacklineError, match=r"numpy==1.26.4 and numpy==2.1.3"):
                client.load("m")
            answer = client["m"]({"x": np.ones(2, np.float32), "name": np.array([b"a"], object)})
            reasons = [entry.reason for entry in client.models() if entry.version == "2"]

    assert answer.model_version == "1"
    assert "cannot be built from requirements.txt" in reasons[0]
    assert "uv: error: No solution found" in server.output


def test_requirements_uploaded_with_a_load_are_not_installed_without_trust(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    files = {"file:1/model.py": VERSIONS, "file:1/requirements.txt": "numpy==1.26.4\n"}
    with (
        serve(
            tmp_path / "models",
            tmp_path / "log",
            "--model-control-mode",
            "explicit",
            "--cache-dir",
            str(tmp_path / "cache"),
        ) as server,
        tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client,
        pytest.raises(Exception, match="--trust-remote-code"),
    ):
        client.load_model("m", config="{}", files={name: text.encode() for name, text in files.items()})

    assert not list((tmp_path / "cache").glob("environments/*"))


def test_a_model_runs_on_its_configured_python(tmp_path: Path, cache: Path) -> None:
    python = another_python()
    if not python:
        pytest.skip("this machine has no other Python")
    put(
        tmp_path / "models" / "m" / "1" / "model.py",
        "import sys\n\nclass Model:\n    def predict(self, x: str) -> str:\n        return sys.version\n",
    )
    put(tmp_path / "models" / "m" / "model.toml", f'python = "{python}"\n')
    with (
        serve(tmp_path / "models", tmp_path / "log", "--cache-dir", str(cache)) as server,
        backline.connect(server.url) as client,
    ):
        version = client["m"](np.array([b"a"], object))["output"][0].decode()

    assert version.startswith(python + ".")
