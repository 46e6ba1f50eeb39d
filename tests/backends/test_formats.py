"""Every format through a real server: clients get what the model's own runtime answers here."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import np_to_triton_dtype

from backends.served_models import (
    CREPE_EXPORTED,
    CREPE_ONNX,
    CREPE_SCRIPT,
    ISOLATED,
    MODELS,
    PITCH_LITERT,
    PITCH_ONNX,
    PITCH_ONNX_OPENVINO,
    PITCH_OPENVINO,
    PITCH_OUTPUTS,
    PITCH_SAVED_MODEL,
    PITCH_SAVED_MODEL_OPENVINO,
    SILERO_ONNX,
    SILERO_SCRIPT,
    Arrays,
    Formats,
    Served,
    isolated,
    need,
)
from backline import connect

pytestmark = pytest.mark.timeout(
    500
)  # the first test waits until all runtimes are imported and all models loaded

CLIENTS: dict[str, Any] = {"HTTP": tritonclient.http, "gRPC": tritonclient.grpc}
#: The formats of one model, each with the names of its outputs; the first is what the others are compared
#: with.
FORMATS_OF_ONE: dict[str, list[tuple[Served, list[str]]]] = {
    "basic-pitch": [
        (PITCH_ONNX, list(PITCH_OUTPUTS.values())),
        (PITCH_SAVED_MODEL, list(PITCH_OUTPUTS)),
        (PITCH_LITERT, list(PITCH_OUTPUTS)),
        (PITCH_OPENVINO, list(PITCH_OUTPUTS.values())),
        (PITCH_ONNX_OPENVINO, list(PITCH_OUTPUTS.values())),
        (PITCH_SAVED_MODEL_OPENVINO, list(PITCH_OUTPUTS)),
    ],
    "crepe": [(CREPE_EXPORTED, ["OUTPUT__0"]), (CREPE_SCRIPT, ["OUTPUT__0"]), (CREPE_ONNX, ["pitch"])],
    "silero": [(SILERO_ONNX, ["output", "stateN"]), (SILERO_SCRIPT, ["OUTPUT__0", "OUTPUT__1"])],
}
PAIRS = [(formats[0], other) for formats in FORMATS_OF_ONE.values() for other in formats[1:]]


def infer(formats: Formats, protocol: str, model: str, inputs: Arrays) -> Arrays:
    library = CLIENTS[protocol]
    port = formats.server.http_port if protocol == "HTTP" else formats.server.grpc_port
    with library.InferenceServerClient(f"127.0.0.1:{port}") as client:
        tensors = []
        for name, array in inputs.items():
            tensor = library.InferInput(name, array.shape or (1,), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array.reshape(array.shape or (1,)))
            tensors.append(tensor)
        result = client.infer(model, tensors)
        answer = result.get_response()
        outputs = answer["outputs"] if protocol == "HTTP" else answer.outputs
        return {
            name: result.as_numpy(name)
            for name in (o["name"] if protocol == "HTTP" else o.name for o in outputs)
        }


def assert_alike(answer: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    assert answer.shape == expected.shape
    assert answer.dtype == expected.dtype
    if answer.dtype.kind == "f":
        np.testing.assert_allclose(answer, expected, rtol=tolerance, atol=tolerance)
    else:
        np.testing.assert_array_equal(answer, expected)


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("protocol", CLIENTS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_answers_are_those_of_the_runtime_itself(
    model: Served, protocol: str, items: int, request: pytest.FixtureRequest
) -> None:
    need(*model.needs)
    formats: Formats = request.getfixturevalue("formats")
    inputs = model.inputs(items)
    expected = model.answer(formats.version(model.name), inputs)

    answers = infer(formats, protocol, model.name, inputs)

    assert answers.keys() == expected.keys()
    for name, array in expected.items():
        assert_alike(answers[name], array, model.tolerance)


@pytest.mark.parametrize("items", [1, 3])
@pytest.mark.parametrize("model", ISOLATED, ids=lambda model: model.name)
def test_a_model_in_a_worker_process_gives_the_same_answers_and_has_the_same_metadata(
    model: Served, items: int, request: pytest.FixtureRequest
) -> None:
    need(*model.needs)
    formats: Formats = request.getfixturevalue("formats")
    inputs = model.inputs(items)
    expected = model.answer(formats.version(model.name), inputs)

    for protocol in CLIENTS:
        answers = infer(formats, protocol, isolated(model), inputs)

        assert answers.keys() == expected.keys()
        for name, array in expected.items():
            assert_alike(answers[name], array, model.tolerance)
    with tritonclient.http.InferenceServerClient(f"127.0.0.1:{formats.server.http_port}") as client:
        described = [client.get_model_metadata(name) for name in (model.name, isolated(model))]
    with connect(formats.server.url) as client:
        config = client[isolated(model)].config(explained=True)
    lane = config["parameters"]["backline.lane"]["string_value"]
    assert described[0] == {**described[1], "name": model.name}
    assert lane == "process"


@pytest.mark.parametrize(
    ("one", "other"), PAIRS, ids=[f"{one[0].name}-{other[0].name}" for one, other in PAIRS]
)
def test_all_formats_of_one_model_give_the_same_answers(
    one: tuple[Served, list[str]], other: tuple[Served, list[str]], request: pytest.FixtureRequest
) -> None:
    need(*one[0].needs, *other[0].needs)
    formats: Formats = request.getfixturevalue("formats")

    first = infer(formats, "HTTP", one[0].name, one[0].inputs(2))
    second = infer(formats, "HTTP", other[0].name, other[0].inputs(2))

    for name, other_name in zip(one[1], other[1], strict=True):
        assert_alike(second[other_name], first[name], 1e-3)
