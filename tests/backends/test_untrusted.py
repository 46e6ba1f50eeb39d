"""Bad model files in a running server: each fails alone, with its reason, and the others are served."""

from __future__ import annotations

import json
import pickle
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import tritonclient.http as tritonclient

from backends.served_models import need
from backends.test_tables import Payload
from support import models
from support.server import ServerProcess, serve


def _write(repository: Path, name: str, filename: str, content: bytes) -> None:
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "1" / filename).write_bytes(content)


def _states(server: ServerProcess) -> dict[str, tuple[str, str]]:
    request = urllib.request.Request(f"{server.url}/v2/repository/index", method="POST")
    with urllib.request.urlopen(request, timeout=30) as answer:
        index: list[dict[str, Any]] = json.load(answer)
    return {entry["name"]: (entry["state"], entry.get("reason", "")) for entry in index}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "repository"
    models.add1(path)
    _write(path, "pickled", "model.pkl", pickle.dumps(Payload(tmp_path / "executed")))
    _write(path, "labels", "model.json", b'["a", "b"]')
    _write(path, "noise", "model.tflite", b"no flatbuffer at all")
    return path


def _is_ready(server: ServerProcess, model: str) -> bool:
    try:
        with urllib.request.urlopen(f"{server.url}/v2/models/{model}/ready", timeout=30) as answer:
            return answer.status == 200
    except urllib.error.HTTPError:
        return False


def test_each_bad_file_fails_alone_and_no_pickle_is_executed(repository: Path, tmp_path: Path) -> None:
    need("sklearn", "xgboost", "ai_edge_litert")
    with serve(repository, tmp_path / "log", "--no-strict-readiness") as server:
        states = _states(server)
        ready = {name: _is_ready(server, name) for name in states}

    assert ready == {"add1": True, "pickled": False, "labels": False, "noise": False}
    assert "is a pickle, which can execute anything" in states["pickled"][1]
    assert "is not a model that XGBoost's save_model wrote" in states["labels"][1]
    assert "is not a LiteRT model" in states["noise"][1]
    assert not (tmp_path / "executed").exists()


def test_a_server_that_trusts_pickles_serves_them_and_says_so(tmp_path: Path) -> None:
    need("sklearn")
    import joblib
    from sklearn.linear_model import LinearRegression

    repository = tmp_path / "repository"
    (repository / "line" / "1").mkdir(parents=True)
    joblib.dump(
        LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0]), repository / "line" / "1" / "model.joblib"
    )

    with serve(repository, tmp_path / "log", "--trust-pickle") as server:
        body = json.dumps(
            {"inputs": [{"name": "input__0", "datatype": "FP64", "shape": [1, 1], "data": [2.0]}]}
        ).encode()
        with urllib.request.urlopen(f"{server.url}/v2/models/line/infer", body, timeout=30) as answer:
            outputs = json.load(answer)["outputs"]

    assert outputs[0]["data"] == pytest.approx([5.0])
    assert f"{repository / 'line' / '1' / 'model.joblib'}' is a pickle" in server.output


def _put_line(folder: Path) -> None:
    import joblib
    from sklearn.linear_model import LinearRegression

    folder.mkdir(parents=True)
    joblib.dump(LinearRegression().fit([[0.0], [1.0]], [1.0, 3.0]), folder / "model.joblib")


def test_pickles_are_trusted_by_the_names_of_models(tmp_path: Path) -> None:
    need("sklearn")
    repository = tmp_path / "repository"
    for name in ("risk-eu", "risk-us", "other"):
        _put_line(repository / name / "1")

    options = ("--trust-pickle-model", "risk-*", "--no-strict-readiness")
    with serve(repository, tmp_path / "log", *options) as server:
        ready = {name: _is_ready(server, name) for name in ("risk-eu", "risk-us", "other")}
        states = _states(server)

    assert ready == {"risk-eu": True, "risk-us": True, "other": False}
    assert "serve with --trust-pickle-model other" in states["other"][1]


def test_a_trusted_name_does_not_make_a_clients_pickle_trusted(tmp_path: Path) -> None:
    need("sklearn")
    _put_line(tmp_path / "made")
    (tmp_path / "repository").mkdir()
    files = {"file:1/model.joblib": (tmp_path / "made" / "model.joblib").read_bytes()}
    options = ("--model-control-mode", "explicit", "--trust-pickle-model", "risk-*")
    with (
        serve(tmp_path / "repository", tmp_path / "log", *options) as server,
        tritonclient.InferenceServerClient(server.url.removeprefix("http://")) as client,
        pytest.raises(Exception, match="is a pickle, which can execute anything"),
    ):
        client.load_model("risk-mine", config="{}", files=files)
