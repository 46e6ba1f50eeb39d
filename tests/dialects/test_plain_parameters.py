"""The parameters of plain HTTP: the same meaning as in the Open Inference Protocol, wherever they stand."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
from fake_models import Caller, NumpyQueue

from backline.engine.engine import Engine
from backline_client.values.messages import InferRequest, SequenceStep

ROW = [0.0] * 16
PARAMETERS = {
    "priority": 2,
    "timeout": 20_000,
    "sequence_id": "talk",
    "sequence_start": True,
    "sequence_end": False,
    "unit": "m",
}
QUERY = "priority=2&timeout=20000&sequence_id=talk&sequence_start=true&sequence_end=false&unit=m"
HTTP = b"content-type"


def as_json(caller: Caller) -> None:
    body = json.dumps({"INPUT0": ROW, "parameters": PARAMETERS}).encode()
    caller.http("POST", "/models/add1", body)


def as_form(caller: Caller) -> None:
    parts = {"INPUT0": ROW, "parameters": PARAMETERS}
    body = b"".join(
        b"--b\r\ncontent-disposition: form-data; name=%b\r\n\r\n%b\r\n"
        % (name.encode(), json.dumps(value).encode())
        for name, value in parts.items()
    )
    caller.http("POST", "/models/add1", body + b"--b--\r\n", {HTTP: b"multipart/form-data; boundary=b"})


def as_raw(caller: Caller) -> None:
    raw = np.array(ROW, np.float32).tobytes()
    caller.http("POST", f"/models/add1?{QUERY}", raw, {HTTP: b"application/octet-stream"})


def as_query(caller: Caller) -> None:
    caller.http("POST", f"/models/add1?{QUERY}", json.dumps({"INPUT0": ROW}).encode())


def as_infer(caller: Caller) -> None:
    given = {"name": "INPUT0", "shape": [1, 16], "datatype": "FP32", "data": ROW}
    caller.infer("add1", {"inputs": [given], "parameters": PARAMETERS})


def asked(caller: Caller) -> InferRequest:
    queue = caller.engine.find("add1", "").serving.queue
    assert isinstance(queue, NumpyQueue)
    (ticket,) = queue.seen
    return ticket.request


@pytest.mark.parametrize("ask", [as_json, as_form, as_raw, as_query, as_infer])
def test_parameters_mean_the_same_on_every_route(caller: Caller, ask: Callable[[Caller], None]) -> None:
    ask(caller)

    request = asked(caller)
    assert (request.priority, request.timeout) == (2, 0.02)
    assert request.sequence == SequenceStep("talk", True, False)
    assert request.parameters == {"unit": "m"}


def reads_none(engine: Engine) -> None:
    for version in ("1", "2"):
        engine.find("add1", version).reads_parameters = False


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"tiemout": 5}, "unknown parameter 'tiemout': model 'add1' reads no parameters of its own. Did you"),
        ({"tiemout": 5}, "Did you mean 'timeout'?"),
        ({"sequence_strt": True}, "Did you mean 'sequence_start'?"),
        ({"temperature": 0.5}, "Expected 'priority' or 'timeout' or"),
        ({"binary_data_output": True}, "the header field Accept"),
        ({"triton_x": 1}, "reserved"),
        ({"timeout": "20"}, "parameter 'timeout' must be an unsigned integer"),
        ({"priority": -1}, "parameter 'priority' must be an unsigned integer"),
        ({"sequence_start": 1}, "parameter 'sequence_start' must be true or false"),
    ],
)
def test_a_parameter_that_nothing_reads_or_that_is_invalid_is_named(
    caller: Caller, parameters: dict[str, object], error: str
) -> None:
    reads_none(caller.engine)

    answer = caller.post("/models/add1", json.dumps({"INPUT0": ROW, "parameters": parameters}).encode())

    assert answer.status == 400
    assert error in answer.error


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/models/add1?tiemout=5", {"INPUT0": ROW}, "Did you mean 'timeout'?"),
        ("/models/add1?timeout=1&timeout=2", {"INPUT0": ROW}, "given twice"),
        ("/models/add1?timeout=1", {"INPUT0": ROW, "parameters": {"timeout": 2}}, "given twice"),
        ("/models/add1?timeout", {"INPUT0": ROW}, "query of the URL"),
        ("/models/add1?timeout=soon", {"INPUT0": ROW}, "unsigned integer"),
        ("/models/add1", {"INPUT0": ROW, "timeout": 5}, "send it in the object 'parameters'"),
    ],
)
def test_a_query_that_cannot_be_read_is_refused(caller: Caller, path: str, body: object, error: str) -> None:
    reads_none(caller.engine)

    answer = caller.post(path, json.dumps(body).encode())

    assert answer.status == 400
    assert error in answer.error


def test_a_number_in_the_query_is_read_as_a_number(caller: Caller) -> None:
    caller.post("/models/add1?sequence_id=7&sequence_start=true", json.dumps({"INPUT0": ROW}).encode())

    assert asked(caller).sequence == SequenceStep(7, True, False)
