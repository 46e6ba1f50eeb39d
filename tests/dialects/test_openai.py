"""OpenAI's models and embeddings: exchanges with a model in this process, and the stock client."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_models import Caller, HttpAnswer, add_model

from backline.access.access import Access, Policy
from backline.access.identity import Grant, Identity, anonymous
from backline.access.keys import hash_key
from backline.access.scope import Scope
from backline.dialects.application import build_application
from backline.dialects.bodies.json_text import MAX_JSON
from backline.engine.engine import Engine
from backline.plugins.dialects.openai import PLUGINS
from backline.plugins.dialects.openai.embeddings import MAX_TEXTS
from backline.testing.dialects import Answer, DialectConformance, Sample
from backline_client.values.datatypes import DataType
from backline_client.values.signature import TensorSpec
from support import text_models
from support.repositories import put
from support.server import ServerProcess, serve

LETTERS = """import numpy as np

from backline.model import BYTES, FP32


class Model:
    max_batch_size = 64

    def predict(self, text: BYTES[1]) -> FP32[2]:
        return np.array([[len(one), one.count(b"e")] for (one,) in text], np.float32)
"""


def embed(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    texts = given["text"]
    return {
        "embedding": np.array([[len(one), one.count(b"e"), 0] for one in texts], np.float32),
        "tokens": np.array([1 + one.count(b" ") for one in texts], np.int32),
        "truncated": np.array([max(0, len(one) - 100) for one in texts], np.int32),
    }


def make_caller(**options: Any) -> Caller:
    engine = Engine()
    counts = [TensorSpec(name, DataType.INT32, (-1,)) for name in ("tokens", "truncated")]
    add_model(
        engine,
        "letters",
        [TensorSpec("text", DataType.BYTES, (-1,))],
        [TensorSpec("embedding", DataType.FP32, (-1, 3)), *counts],
        embed,
        max_batch_size=10_000,
    )
    add_model(
        engine,
        "numbers",
        [TensorSpec("x", DataType.FP32, (-1, 3))],
        [TensorSpec("y", DataType.FP32, (-1, 3))],
        lambda one: {"y": one["x"]},
    )
    engine.refresh()
    engine.started()
    return Caller(engine, build_application(engine, **options))


def ask(caller: Caller, body: bytes, **fields: str) -> HttpAnswer:
    headers = {name.encode(): value.encode() for name, value in fields.items()}
    answer = caller.http("POST", "/v1/embeddings", body, headers).answer
    assert answer is not None
    return answer


def request(**document: object) -> bytes:
    return json.dumps({"model": "letters", **document}).encode()


@pytest.mark.parametrize("texts", ["free tea", ["free tea"], ["free tea", "é"]])
def test_each_text_has_a_vector(texts: str | list[str]) -> None:
    answer = ask(make_caller(), request(input=texts, user="u-7"))

    vectors = [[8.0, 3.0, 0.0], [2.0, 0.0, 0.0]][: 1 if isinstance(texts, str) else len(texts)]
    assert answer.status == 200, answer.body
    assert answer.json == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(vectors)
        ],
        "model": "letters",
        "usage": {"prompt_tokens": len(vectors) + 1, "total_tokens": len(vectors) + 1},
    }


def test_base64_has_the_bytes_of_float32() -> None:
    answer: Any = ask(make_caller(), request(input="tea", encoding_format="base64")).json

    vector = np.frombuffer(base64.b64decode(answer["data"][0]["embedding"]), "<f4")
    assert vector.tolist() == [3.0, 1.0, 0.0]


def test_fewer_dimensions_have_the_length_one() -> None:
    answer: Any = ask(make_caller(), request(input="free", dimensions=2)).json

    assert answer["data"][0]["embedding"] == pytest.approx([4 / 20**0.5, 2 / 20**0.5])


def test_as_many_texts_as_openai_takes() -> None:
    answer: Any = ask(make_caller(), request(input=["a"] * MAX_TEXTS)).json

    assert len(answer["data"]) == MAX_TEXTS


@pytest.mark.parametrize(
    ("body", "status", "param", "text"),
    [
        (b"{", 400, None, "could not parse the JSON body"),
        (b'{"input": "a"}', 400, "model", "you must provide a model parameter"),
        (b'{"model": "letters"}', 400, None, "missing required field `input`"),
        (request(input=[]), 400, "input", "send 1 to 2048"),
        (request(input=["a"] * (MAX_TEXTS + 1)), 400, "input", "input has 2049 texts"),
        (request(input=7), 400, "input", "not a string, a list of strings"),
        (request(input=["a", 1]), 400, "input", "not a string, a list of strings"),
        (request(input=[1, 2]), 400, "input", "takes no token ids: send texts"),
        (request(input="a", dimensions=0), 400, "dimensions", "0 is less than the minimum of 1"),
        (request(input="a", dimensions=4), 400, "dimensions", "more than the 3 dimensions"),
        (request(input="a", encoding_format="hex"), 400, "encoding_format", "'hex' is not one of"),
        (request(input="a", dimension=2), 400, None, "unknown field `dimension`"),
        (request(input="a" * 120), 400, "input", "text 0 of input has 20 tokens more than"),
        (request(model="nobody", input="a"), 404, None, "The model `nobody` does not exist"),
        (request(model="numbers", input="a"), 501, None, "model 'numbers' does not embed"),
        (b'{"model": "letters", "input": "%b"}' % (b"a" * MAX_JSON), 413, None, "bytes"),
        (b'{"model": "letters", "input": ' + b"[" * 10_000, 400, None, ""),
    ],
)
def test_errors_have_openais_form(body: bytes, status: int, param: str | None, text: str) -> None:
    answer = ask(make_caller(), body)

    document: Any = answer.json
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert (answer.status, document["error"]["param"]) == (status, param), document
    assert text in document["error"]["message"]
    assert document["error"]["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert document["error"]["code"] == ("model_not_found" if status == 404 else None)


def test_a_response_has_the_id_of_the_request() -> None:
    assert ask(make_caller(), request(input="a")).fields[b"x-request-id"].startswith(b"req_")
    chosen = ask(make_caller(), request(input="a"), **{"x-request-id": "mine"})
    assert chosen.fields[b"x-request-id"] == b"mine"


def test_the_list_of_models_serves_clients_of_kserve_too() -> None:
    document: Any = make_caller().get("/v1/models").json

    assert document["models"] == ["letters", "numbers"]
    assert document["object"] == "list"
    assert [one["id"] for one in document["data"]] == ["letters", "numbers"]
    assert make_caller().get("/v1/models/letters").json["object"] == "model"  # type: ignore[index]
    assert make_caller(dialects=("openai",)).get("/v1/models/nobody").status == 404


def test_a_key_embeds_with_its_own_models_only() -> None:
    grant = Grant(frozenset({Scope.INFER, Scope.READ}), ("numbers",))
    keys = {hash_key("bk_a"): Identity("a", (grant,))}
    caller = make_caller(access=Access(Policy(anonymous(()), keys)))
    key = {"authorization": "Bearer bk_a"}

    assert ask(caller, request(input="a"), **key).status == 403
    assert ask(caller, request(input="a", model="numbers"), **key).status == 501
    listed = caller.http("GET", "/v1/models", headers={b"authorization": b"Bearer bk_a"}).answer
    assert listed is not None
    assert [one["id"] for one in listed.json["data"]] == ["numbers"]  # type: ignore[index]


class TestOpenAi(DialectConformance):
    plugin = PLUGINS[0]
    requests = (
        Sample("POST", "/v1/embeddings", b'{"model": "letters", "input": "a"}'),
        Sample("GET", "/v1/models"),
        Sample("GET", "/v1/models/letters"),
    )

    @classmethod
    def add_models(cls, repository: Path) -> None:
        put(repository / "letters" / "1" / "model.py", LETTERS)

    def error_text(self, answer: Answer) -> str:
        error = json.loads(answer.body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openai")
    text_models.embedding_model(folder / "models" / "minilm" / "1")
    put(folder / "models" / "letters" / "1" / "model.py", LETTERS)
    with serve(folder / "models", folder / "log") as running:
        yield running


CLIENT = """
import sys

import openai

client = openai.OpenAI(base_url=sys.argv[1] + "/v1", api_key="none", max_retries=0)


def failed(kind, **asked):
    try:
        client.embeddings.create(**asked)
    except kind as error:
        return error.code, error.param
    raise AssertionError(asked)


def vectors(model, texts, **more):
    answer = client.embeddings.create(model=model, input=texts, **more)
    assert [one.index for one in answer.data] == list(range(len(answer.data)))
    return [one.embedding for one in answer.data]


assert [one.id for one in client.models.list()] == ["letters", "minilm"]
assert client.models.retrieve("minilm").object == "model"
one = client.embeddings.create(model="minilm", input="the cat sat", encoding_format="float")
assert one.usage.prompt_tokens == one.usage.total_tokens > 2, one.usage
two = vectors("minilm", ["the cat sat", "dog"])  # as base64, which the client asks for
assert max(abs(a - b) for a, b in zip(two[0], one.data[0].embedding)) < 1e-4
(short,) = vectors("minilm", "the cat sat", dimensions=8)
assert len(short) == 8 and abs(sum(x * x for x in short) - 1) < 1e-4
assert len(vectors("minilm", [2, 5, 6, 3])) == 1
assert len(vectors("minilm", [[2, 5, 6, 3], [2, 5, 3]])) == 2
assert len(vectors("minilm", ["dog"] * 300)) == 300
assert vectors("letters", ["tea", "tree"]) == [[3.0, 1.0], [4.0, 2.0]]
assert failed(openai.NotFoundError, model="none", input="a") == ("model_not_found", None)
assert failed(openai.BadRequestError, model="minilm", input=[]) == (None, "input")
assert failed(openai.BadRequestError, model="minilm", input="a", dimensions=999) == (None, "dimensions")
assert failed(openai.BadRequestError, model="minilm", input=[99999]) == (None, "input")
assert failed(openai.BadRequestError, model="minilm", input="dog " * 100) == (None, "input")
print("done")
"""


def test_the_stock_client_embeds(server: ServerProcess) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CLIENT, server.url], capture_output=True, text=True, timeout=100, check=False
    )

    assert ran.stdout == "done\n", ran.stderr
