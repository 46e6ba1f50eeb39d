"""JSON tensors of megabytes: decoded and encoded in pieces, off the event loop."""

from __future__ import annotations

import json
import threading
import time
from http.client import HTTPConnection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backline.dialects import json_data
from backline.dialects.input_plan import InputPlan
from backline_client.values.errors import InvalidArgument
from support.server import ServerProcess


def nested(shape: list[int]) -> str:
    return json.dumps(np.arange(int(np.prod(shape))).reshape(shape).tolist())


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_data, "LARGE", 16)


@pytest.mark.usefixtures("small_pieces")
@settings(deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_pieces_hold_every_element_in_order(shape: list[int]) -> None:
    json_data.LARGE = 16
    tensor = json_data.decode_data(InputPlan("x", "INT64", tuple(shape)), nested(shape).encode(), "$")

    assert tensor.data.tolist() == np.arange(int(np.prod(shape))).reshape(shape).tolist()


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "text",
    [
        "[[1,2,3,4,5,6,7,8],[9,10,11,12,[13]]]",
        "[[1,2,3,4,5,6,7,8],9,[10,11,12],[13]]",
        "[[1,2,3,4,5,6,7,8],[9,10,11,12,true]]",
        '[[1,2,3,4,5,6,7,8],[9,10,11,12,"1"]]',
        "[[1,2,3,4,5,6,7,8],[9,10,11,12,1.5]]",
        "[[1,2,3,4,5,6,7,8],[9,10,11,12,99999999999999999999]]",
    ],
)
def test_malformed_piece_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        json_data.decode_data(InputPlan("x", "INT64", (13,)), text.encode(), "$")


def infer(server: ServerProcess, model: str, array: np.ndarray) -> tuple[int, dict[str, object]]:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    document = {
        "inputs": [{"name": "INPUT0", "shape": list(array.shape), "datatype": "FP32", "data": array.tolist()}]
    }
    connection.request("POST", f"/v2/models/{model}/infer", json.dumps(document))
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_large_tensor_makes_the_round_trip(server: ServerProcess) -> None:
    array = np.random.default_rng(1).standard_normal((2, 3, 224, 224)).astype(np.float32)

    status, document = infer(server, "ident", array)

    assert status == 200
    (output,) = document["outputs"]  # type: ignore[misc]
    assert np.array_equal(np.array(output["data"], np.float32).reshape(array.shape), array)


def test_a_wrong_count_in_a_large_tensor_is_the_clients_error(server: ServerProcess) -> None:
    connection = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    body = (
        '{"inputs":[{"name":"INPUT0","shape":[1,3,224,224],"datatype":"FP32","data":['
        + ",".join(["1.5"] * 150_000)
        + "]}]}"
    )

    connection.request("POST", "/v2/models/ident/infer", body)
    answer = connection.getresponse()

    assert answer.status == 400
    assert "150000" in json.loads(answer.read())["error"]


def test_others_are_answered_while_megabytes_of_json_are_read_and_written(server: ServerProcess) -> None:
    row = b"[" + b",".join([b"0.123456789"] * 224) + b"]"
    plane = b"[" + b",".join([row] * 224) + b"]"
    image = b"[" + b",".join([plane] * 3) + b"]"
    data = b"[" + b",".join([image] * 8) + b"]"
    body = b'{"inputs":[{"name":"INPUT0","shape":[8,3,224,224],"datatype":"FP32","data":' + data + b"}]}"
    small = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
    statuses: list[int] = []

    def send_large() -> None:
        connection = HTTPConnection("127.0.0.1", server.http_port, timeout=60)
        connection.request("POST", "/v2/models/ident/infer", body)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)

    def longest_wait() -> tuple[float, float]:
        """The longest wait of another client for a response, and the time that the large request takes."""
        large = threading.Thread(target=send_large)
        waits = []
        began = time.monotonic()
        large.start()
        while large.is_alive():
            begin = time.monotonic()
            small.request("GET", "/v2/health/live")
            small.getresponse().read()
            waits.append(time.monotonic() - begin)
        return max(waits), time.monotonic() - began

    # A busy machine may delay any response once. Reading or writing the large body takes a third of its time,
    # and would delay a response each time.
    tries = []
    for _ in range(4):
        waited, took = longest_wait()
        tries.append((waited, took))
        if waited < max(0.2, took / 5):
            break
    else:
        pytest.fail(f"longest waits, and times of the large requests: {tries}")
    assert set(statuses) == {200}
