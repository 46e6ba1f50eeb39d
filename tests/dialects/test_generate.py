"""Requests of the generate extension, and bodies that are not JSON, sent to a real server."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from onnx import TensorProto

from support import models
from support.repositories import put
from support.server import ServerProcess, serve
from support.streaming import put_models
from support.tools import run

REPEATED = """
def repeated(text: str, times: int = 2) -> str:
    return text * times
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Serves `echo`, which returns its strings, and `repeated`, which has an optional input."""
    folder = tmp_path_factory.mktemp("generate")
    put(put_models(folder / "models") / "repeated" / "1" / "model.py", REPEATED)
    put(folder / "models" / "short" / "1" / "model.py", "def short(x: int) -> int:\n    return x\n")
    with serve(folder / "models", folder / "log") as running:
        yield running


def post(server: ServerProcess, path: str, document: Any) -> Any:
    """The answer's JSON, which for an error is its text."""
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    request = urllib.request.Request(
        f"{server.url}/v2/models/{path}", body, {"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        return {400: json.load(error)["error"]}[error.code]


def encoded(text: str) -> dict[str, str]:
    return {"b64": base64.b64encode(text.encode()).decode()}


#: The first ends with zero bytes; the last two are decoded in pieces or off the event loop.
TEXTS = [["ä\0\0"], ["", "b", "c,]}{["], ["x" * 300_000], [f"text {number}" for number in range(9000)]]


@pytest.mark.parametrize("texts", TEXTS, ids=len)
def test_bytes_are_sent_as_base64(server: ServerProcess, texts: list[str]) -> None:
    values = list(map(encoded, texts))
    tensor = {"name": "IN", "datatype": "BYTES", "shape": [len(values)], "data": values}

    generated = post(server, "echo/generate", {"IN": values})["OUT"]
    inferred = post(server, "echo/infer", {"inputs": [tensor]})["outputs"][0]["data"]

    assert (generated if len(texts) > 1 else [generated]) == texts
    assert inferred == texts
    if len(texts) == 1:
        assert post(server, "echo/generate", {"IN": values[0]})["OUT"] == texts[0]


def test_strings_and_base64_may_be_mixed(server: ServerProcess) -> None:
    assert post(server, "echo/generate", {"IN": ["a", encoded("b")]})["OUT"] == ["a", "b"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"b64": "not base64!"}, "Invalid base64 encoded string"),
        ({"base64": "QQ=="}, "Object contains unknown field `base64`"),
        ({"b64": "QQ==", "type": "text"}, "Object contains unknown field `type`"),
        ({"b64": 5}, "Expected `bytes`, got `int`"),
        ([{"b64": "QQ=="}, 5], "got `int`"),
    ],
)
def test_malformed_base64_is_refused(server: ServerProcess, value: Any, reason: str) -> None:
    error = post(server, "echo/generate", {"IN": value})

    assert error.startswith(("Unable to parse 'data'", "Unable to parse JSON bytes array"))
    assert reason in error
    assert error.endswith('A string that is not UTF-8 is written as {"b64": "..."}')


def test_a_long_list_of_base64_with_a_plain_string_is_refused(server: ServerProcess) -> None:
    values = [*map(encoded, ["x" * 100_000, "y"]), "plain text"]

    assert "Expected `object`, got `str`" in post(server, "echo/generate", {"IN": values})


def test_a_number_has_no_base64(server: ServerProcess) -> None:
    assert "it is an object, expected one element" in post(
        server, "repeated/generate", {"text": "a", "times": {"b64": "QQ=="}}
    )


@pytest.mark.parametrize("action", ["generate", "generate_stream"])
def test_a_misspelt_input_gets_a_suggestion(server: ServerProcess, action: str) -> None:
    error = post(server, f"repeated/{action}", {"txet": "ab", "temperature": 1})

    assert error.endswith(
        "missing required input(s) ['text']. Please provide all required input(s)."
        " 'txet' names no input, so it is a parameter: did you mean 'text'?"
    )


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        ({"txet": ["ab"]}, "'txet' names no input: did you mean 'text'?"),
        ({"text": "a", "tims": [2]}, "'tims' names no input: did you mean 'times'?"),
        ({"parameters": {"txet": None}}, "'txet' names no input: did you mean 'text'?"),
        ({"surprise": [1]}, "or 'string'."),
    ],
)
def test_an_array_under_a_misspelt_name_gets_a_suggestion(
    server: ServerProcess, document: dict[str, object], hint: str
) -> None:
    error = post(server, "repeated/generate", document)

    assert "has invalid type" in error
    assert error.endswith(hint)


@pytest.mark.parametrize("value", [1, [1]])
def test_a_misspelt_short_name_gets_a_suggestion(server: ServerProcess, value: object) -> None:
    assert post(server, "short/generate", {"y": value}).endswith("did you mean 'x'?")


def test_other_missing_inputs_get_the_text_of_triton(server: ServerProcess) -> None:
    assert post(server, "repeated/generate", {"temperature": 1}) == (
        "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model"
        " 'repeated'. Got input(s) [], but missing required input(s) ['text']. Please provide all required"
        " input(s)."
    )


@pytest.mark.parametrize("action", ["infer", "infer_stream", "generate", "generate_stream"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-F", "IN=@{file}"), "content type multipart/form-data, as curl sends it with -F, but"),
        (("--data-binary", "@{file}"), "content type application/x-www-form-urlencoded, but"),
        (("-H", "Content-Type: audio/mpeg", "--data-binary", "@{file}"), "content type audio/mpeg, but"),
        (("-H", "Content-Type:", "--data-binary", "@{file}"), "The body has no content type, but"),
    ],
)
def test_a_body_that_is_not_json_gets_an_error_that_says_what_to_send(
    server: ServerProcess, tmp_path: Path, action: str, arguments: tuple[str, ...], said: str
) -> None:
    file = tmp_path / "sound.mp3"
    file.write_bytes(b"ID3\x04" + bytes(300))

    answer = run(
        "curl", "-s", *(part.format(file=file) for part in arguments), f"{server.url}/v2/models/echo/{action}"
    )

    error = json.loads(answer)["error"]
    assert error.startswith(
        "failed to parse the request JSON buffer: JSON is malformed: invalid character (byte "
    )
    assert said in error
    assert "it must be a JSON object" in error
    assert "Inference-Header-Content-Length: 0" in error


def test_malformed_json_gets_no_advice_about_files(server: ServerProcess) -> None:
    assert post(server, "echo/infer", b'{"inputs": [') == (
        "failed to parse the request JSON buffer: Input data was truncated"
    )


def test_nan_and_infinity_pass_as_words(tmp_path: Path) -> None:
    models.identity_of(tmp_path / "models", "same", TensorProto.FLOAT, ("N",))

    with serve(tmp_path / "models", tmp_path / "log") as running:
        (several, one) = (
            post(running, "same/generate", text)
            for text in (b'{"INPUT0":[NaN,1,-Infinity]}', b'{"INPUT0":NaN}')
        )

    assert json.dumps([several["OUTPUT0"], one["OUTPUT0"]]) == "[[NaN, 1.0, -Infinity], NaN]"
