"""TorchServe's inference API for models of other formats, and its errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fake_models import Caller, HttpAnswer, add_model

from backline.dialects.application import build_application
from backline.engine.engine import Engine
from backline.plugins.dialects.torchserve import PLUGINS
from backline.testing.dialects import Answer, DialectConformance, Sample
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support.models import add1

ROW = [float(n) for n in range(16)]
SUM = [n + 1 for n in ROW]
BINARY = b"application/octet-stream"


def ask(caller: Caller, path: str, body: bytes = b"", **fields: bytes) -> HttpAnswer:
    headers = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    answer = caller.http("POST", path, body, headers).answer
    assert answer is not None
    return answer


def form(name: str, body: bytes) -> bytes:
    return b'--b\r\ncontent-disposition: form-data; name="%b"; filename="f"\r\n\r\n%b\r\n--b--\r\n' % (
        name.encode(),
        body,
    )


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (json.dumps({"INPUT0": ROW}).encode(), b"application/json"),
        (json.dumps({"data": ROW}).encode(), b"application/json"),
        (json.dumps({"body": ROW}).encode(), b""),
        (np.array(ROW, np.float32).tobytes(), BINARY),
        (form("data", np.array(ROW, np.float32).tobytes()), b"multipart/form-data; boundary=b"),
        (form("INPUT0", np.array(ROW, np.float32).tobytes()), b"multipart/form-data; boundary=b"),
    ],
    ids=["json", "json data", "json body", "raw", "file data", "file"],
)
def test_a_model_of_any_format_runs_by_its_signature(caller: Caller, body: bytes, kind: bytes) -> None:
    answer = ask(caller, "/predictions/add1", body, content_type=kind)

    assert answer.status == 200, answer.body
    values = answer.json
    assert isinstance(values, dict)
    assert np.reshape(values["OUTPUT0"], -1).tolist() == SUM
    assert answer.fields[b"cache-control"].startswith(b"no-cache")


def test_a_file_without_a_type_is_the_input_of_a_model_that_takes_files() -> None:
    engine = Engine()
    text = TensorSpec("text", DataType.BYTES, (1,))
    add_model(
        engine, "upper", [text], [TensorSpec("out", DataType.BYTES, (1,))], lambda one: {"out": one["text"]}
    )
    engine.refresh()
    caller = Caller(engine, build_application(engine))

    answer = ask(caller, "/predictions/upper", b"[not JSON", accept=b"text/plain")

    assert (answer.status, answer.body) == (200, b"[not JSON")


def test_an_input_sent_under_two_names_is_refused(caller: Caller) -> None:
    body = json.dumps({"INPUT0": ROW, "data": ROW}).encode()

    answer = ask(caller, "/predictions/add1", body, content_type=b"application/json")

    assert error(answer, 400, "BadRequestException") == "the JSON has input 'INPUT0' more than once"


def error(answer: HttpAnswer, status: int, kind: str) -> str:
    found = answer.json
    assert isinstance(found, dict)
    assert (answer.status, found["code"], found["type"]) == (status, status, kind)
    text = found["message"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize(
    ("path", "status", "kind", "text"),
    [
        ("/predictions/nope", 404, "ModelNotFoundException", "Model not found: nope"),
        (
            "/predictions/add1/7",
            404,
            "ModelVersionNotFoundException",
            "Model version: 7 does not exist for model: add1",
        ),
        (
            "/predictions/loading",
            503,
            "ServiceUnavailableException",
            'Model "loading" has no worker to serve inference request. Please use scale workers API to ',
        ),
        ("/predictions/failing", 503, "InternalServerException", "Prediction failed: the runtime failed"),
        ("/predictions/add1", 400, "BadRequestException", ""),
        ("/explanations/add1", 501, "UnsupportedOperationException", "model 'add1' has no explanations"),
    ],
)
def test_errors_have_the_types_and_texts_of_torchserve(
    caller: Caller, path: str, status: int, kind: str, text: str
) -> None:
    body = b"{" if path == "/predictions/add1" else json.dumps({"data": ROW}).encode()

    answer = ask(caller, path, body, content_type=b"application/json")

    assert error(answer, status, kind).startswith(text)
    assert answer.body.endswith(b"}\n")


def test_a_full_queue_asks_to_try_again(caller: Caller) -> None:
    caller.engine.find("add1").serving.queue.full = True  # type: ignore[attr-defined]

    answer = ask(caller, "/predictions/add1", json.dumps({"data": ROW}).encode())

    assert error(answer, 503, "ServiceUnavailableException").endswith("Exceeds maximum queue size")
    assert answer.fields[b"retry-after"] == b"2"


def test_ping_tells_whether_all_models_are_ready(caller: Caller) -> None:
    assert caller.get("/ping").status == 500
    caller.engine.remove(caller.engine.find("loading"))
    assert caller.get("/ping").body == b'{\n  "status": "Healthy"\n}\n'


@pytest.mark.parametrize(("method", "path"), [("OPTIONS", "/"), ("GET", "/api-description")])
def test_the_apis_describe_themselves(caller: Caller, method: str, path: str) -> None:
    answer = caller.http(method, path).answer
    assert answer is not None
    document = answer.json
    assert isinstance(document, dict)
    assert document["openapi"] == "3.0.1"
    assert {"/ping", "/predictions/{model_name}"} <= document["paths"].keys()


def test_the_list_of_models_has_pages(caller: Caller) -> None:
    names: list[str] = []
    path = "/models?limit=7"
    while path:
        page = caller.get(path).json
        assert isinstance(page, dict)
        names += [one["modelName"] for one in page["models"]]
        path = f"/models?limit=7&next_page_token={page['nextPageToken']}" if "nextPageToken" in page else ""

    assert names == [name for name in caller.engine.names() if name != "empty"]


def test_the_model_of_another_format_is_described(caller: Caller) -> None:
    (found,) = caller.get("/models/add1").json  # type: ignore[misc]
    assert (found["modelVersion"], found["runtime"], found["batchSize"]) == ("2", "numpy", 64)
    assert (found["minWorkers"], len(found["workers"])) == (2, 2)


class TestTorchServeConformance(DialectConformance):
    plugin = PLUGINS[0]
    requests = (
        Sample("POST", "/predictions/add1", json.dumps({"INPUT0": ROW}).encode()),
        Sample("PUT", "/predictions/add1/1", json.dumps({"data": ROW}).encode()),
    )

    def error_text(self, answer: Answer) -> str:
        found = json.loads(answer.body)
        text = found["message"] if "message" in found else found["error"]
        assert isinstance(text, str)
        return text

    @classmethod
    def add_models(cls, repository: Path) -> None:
        add1(repository)
