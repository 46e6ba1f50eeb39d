"""Missing and infinite numbers in JSON: the same on every route."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from fake_models import Caller

from backline.dialects.off_loop import LARGE

SPELLINGS = {
    "null": math.nan,
    "NaN": math.nan,
    '"NaN"': math.nan,
    "Infinity": math.inf,
    '"Infinity"': math.inf,
    "-Infinity": -math.inf,
    '"-Infinity"': -math.inf,
}
ROUTES = ("infer", "generate", "plain", "form")
Numbers = list[float]


async def ask(caller: Caller, route: str, datatype: str, elements: str) -> tuple[int, Any]:
    """Sends a list of elements to a model that returns it. Returns the status, and the elements as written
    or the error.
    """
    model, count = f"echo_{datatype}_1", elements.count(",") + 1
    headers: dict[bytes, bytes] = {}
    if route == "infer":
        path = f"/v2/models/{model}/infer"
        given = f'"name":"INPUT0","shape":[{count}],"datatype":"{datatype}","data":[{elements}]'
        body = f'{{"inputs":[{{{given}}}]}}'
    elif route == "generate":
        path, body = f"/v2/models/{model}/generate", f'{{"INPUT0":[{elements}]}}'
    elif route == "plain":
        path, body = f"/models/{model}", f'{{"INPUT0":[{elements}]}}'
    else:
        path = f"/models/{model}"
        body = f"--b\r\ncontent-disposition: form-data; name=INPUT0\r\n\r\n[{elements}]\r\n--b--\r\n"
        headers = {b"content-type": b"multipart/form-data; boundary=b"}
    request = caller.http("POST", path, body.encode(), headers)
    await request.answered.wait()
    assert request.answer is not None
    found = request.answer.json
    assert isinstance(found, dict)
    if request.answer.status != 200:
        return request.answer.status, found["error"]
    return 200, found["outputs"][0]["data"] if route == "infer" else found["OUTPUT0"]


def numbers(written: object) -> Numbers:
    """Reads a response: the words, or the strings."""
    return [float(one) for one in (written if isinstance(written, list) else [written])]


def same(one: Numbers, other: Numbers) -> bool:
    return np.array_equal(one, other, equal_nan=True)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
async def test_every_spelling_means_the_same_on_every_route(
    caller: Caller, route: str, datatype: str
) -> None:
    elements, expected = ["0.5", *SPELLINGS, "2"], [0.5, *SPELLINGS.values(), 2.0]

    status, written = await ask(caller, route, datatype, ",".join(elements))

    assert status == 200, written
    assert same(numbers(written), expected)


@pytest.mark.parametrize("route", ROUTES)
async def test_every_spelling_means_the_same_in_large_requests(caller: Caller, route: str) -> None:
    repeats = 2 * LARGE // len(",".join(SPELLINGS))

    status, written = await ask(caller, route, "FP32", ",".join([*SPELLINGS] * repeats))

    assert status == 200, written
    assert same(numbers(written), [*SPELLINGS.values()] * repeats)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("element", ["null", '"NaN"', "NaN"])
@pytest.mark.parametrize("datatype", ["INT32", "BOOL"])
async def test_other_datatypes_have_no_missing_values(
    caller: Caller, route: str, element: str, datatype: str
) -> None:
    status, error = await ask(caller, route, datatype, element)

    assert status == 400
    assert "INPUT0" in error
    assert ("str" if element == '"NaN"' else "null") in error


@pytest.mark.parametrize("route", ROUTES[:3])
@pytest.mark.parametrize("missing", ["null", "NaN"])
async def test_a_missing_value_is_no_string(caller: Caller, route: str, missing: str) -> None:
    status, error = await ask(caller, route, "BYTES", f'"a",{missing}')

    assert status == 400
    assert "INPUT0" in error
    assert "null" in error


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("element", ['"nan"', '"1.5"', '""', "true", "{}", '"\\ud800"'])
async def test_other_values_are_no_numbers(caller: Caller, route: str, element: str) -> None:
    status, error = await ask(caller, route, "FP32", f"1,{element}")

    assert status == 400, error


async def test_numbers_that_are_too_large_are_not_infinite(caller: Caller) -> None:
    for elements in ("1e39,Infinity", '"Infinity",1e39', "null,1e39"):
        status, error = await ask(caller, "infer", "FP32", elements)
        assert (status, "cannot hold" in error) == (400, True), error


@pytest.mark.parametrize(
    ("route", "written"),
    [
        ("infer", "[NaN,Infinity,1.5]"),
        ("generate", "[NaN,Infinity,1.5]"),
        ("plain", '["NaN","Infinity",1.5]'),
    ],
)
async def test_plain_responses_are_json_and_others_have_the_words_of_triton(
    caller: Caller, route: str, written: str
) -> None:
    _, found = await ask(caller, route, "FP32", "null,Infinity,1.5")

    assert json.dumps(found, separators=(",", ":")) == written
