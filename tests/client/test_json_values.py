"""Dicts and lists of Python models are plain values in the client and in `backline infer`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import backline
from backline_client.values.errors import InvalidArgument
from support.repositories import put
from support.server import ServerProcess, serve
from support.tools import run

MODELS = {
    "about": "def about(what: dict) -> dict:\n    return {'got': what, 'missing': None}\n",
    "turned": "def turned(items: list) -> list:\n    return items[::-1]\n",
    "calls": (
        "from backline.model import Models\n\n\n"
        "def calls(what: dict, models: Models) -> list:\n"
        "    return [models['about'](what=what)['output'][0], models['turned']([1, {'a': 2}])['output'][0]]\n"
    ),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("json")
    for name, code in MODELS.items():
        put(folder / "models" / name / "1" / "model.py", code)
    with serve(folder / "models", folder / "log") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def client(server: ServerProcess, request: pytest.FixtureRequest) -> Iterator[backline.Client]:
    port = server.http_port if request.param == "http" else server.grpc_port
    with backline.connect(f"{request.param}://127.0.0.1:{port}") as connected:
        yield connected


def test_a_dict_goes_in_and_comes_out(client: backline.Client) -> None:
    value = {"name": "ä", "sizes": [1, 2.5, None], "more": {"b64": "QQ=="}}

    output = client["about"](what=value)["output"]

    assert output.shape == (1,)
    assert output[0] == {"got": value, "missing": None}


@pytest.mark.parametrize("value", [[], [1, "a", {"b": None}], [[1, 2], [3]], ["only", "strings"]])
def test_a_list_goes_in_and_comes_out(client: backline.Client, value: list[object]) -> None:
    assert client["turned"](value)["output"][0] == value[::-1]


def test_json_text_and_arrays_are_accepted_as_before(client: backline.Client) -> None:
    assert client["turned"]("[1, 2]")["output"][0] == [2, 1]
    assert client["turned"](np.array([b"[1, 2]"], object))["output"][0] == [2, 1]


@pytest.mark.parametrize("value", [{"x": float("nan")}, {"x": {1, 2}}])
def test_a_value_that_json_lacks_is_refused(client: backline.Client, value: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument, match="cannot be converted to JSON"):
        client["about"](what=value)


def test_a_model_that_calls_models_gets_the_same_values(client: backline.Client) -> None:
    output = client["calls"](what={"x": 1})["output"][0]

    assert output == [{"got": {"x": 1}, "missing": None}, [{"a": 2}, 1]]


def test_infer_reads_and_writes_plain_json(server: ServerProcess, tmp_path: Path) -> None:
    def infer(model: str, value: str, *options: str) -> str:
        return run("backline", "infer", model, "--input", value, "--url", server.url, *options)

    told = json.loads(infer("about", 'what={"a": {"b64": "QQ=="}}', "--json"))
    assert told["outputs"]["output"]["data"] == [{"got": {"a": {"b64": "QQ=="}}, "missing": None}]
    told = json.loads(infer("turned", "items=[1, [2]]", "--json"))
    assert told["outputs"]["output"]["data"] == [[[2], 1]]
    assert "[2, 1]" in infer("turned", "items=[1, 2]")
    infer("turned", "items=[1, 2]", "--save", str(tmp_path / "saved.npz"))
    with np.load(tmp_path / "saved.npz") as saved:
        assert saved["output"].tolist() == [b"[2, 1]"]
    assert json.loads(infer("turned", "items=random", "--json"))["outputs"]["output"]["data"] == [[]]
