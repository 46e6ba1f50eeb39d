"""A repository of models written for Triton, in studio/, asked by one script.

They use calls to other models, a decoupled model, a sequence, an ensemble with an optional and a decoupled
step, ragged batches, the response cache, the rate limiter, warm-up, metrics of a model, class labels and
version policies.
"""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np

from scenarios.gate import PATIENCE
from scenarios.requests import Pending, Request
from scenarios.scenario import Seen, scenario
from scenarios.session import Session


def _request(session: Session, model: str, inputs: Mapping[str, Any], **options: Any) -> Request:
    """A request; lists of floats are FP32, of integers INT32, of bytes BYTES."""
    if model != "release":  # whose statistics are those of several versions
        session.watch(model)
    kinds = {"f": np.float32, "i": np.int32}
    arrays = {name: np.asarray(value) for name, value in inputs.items()}
    given = {name: array.astype(kinds.get(array.dtype.kind, np.object_)) for name, array in arrays.items()}
    return Request(model, given, options.pop("outputs", None), options)


def _send(session: Session, model: str, **inputs: Any) -> Pending:
    return session.send(_request(session, model, inputs))


def _ask(session: Session, model: str, **inputs: Any) -> dict[str, Any]:
    return _send(session, model, **inputs).result()


@scenario("http", "grpc")
def an_optional_input_may_be_left_out(session: Session) -> None:
    _ask(session, "gain", AUDIO=[[0.5, -0.25]])
    _ask(session, "gain", AUDIO=[[0.5, -0.25], [1.0, 2.0]], GAIN=[[3.0], [0.0]])


@scenario("http", "grpc")
def a_model_calls_another(session: Session) -> None:
    _ask(session, "peak", AUDIO=[0.5, -0.25])
    _ask(session, "peak", AUDIO=[0.1])
    _ask(session, "peak", AUDIO=[0.1], MODEL=[b"nobody"])


@scenario("stream")
def a_decoupled_model_sends_a_response_per_frame(session: Session) -> Seen:
    def frames(empty_final: bool, **inputs: Any) -> Any:
        stream = session.stream()
        stream.send(_request(session, "frames", inputs), empty_final=empty_final)
        return stream.close()

    return {
        "three frames": frames(False, AUDIO=[[1.0, 2.0, 3.0, 4.0, 5.0]]),
        "of three samples": frames(False, AUDIO=[[1.0, 2.0, 3.0, 4.0, 5.0]], SIZE=[[3]]),
        "with an empty final response": frames(True, AUDIO=[[1.0, 2.0, 3.0]]),
        "an error": frames(False, AUDIO=[[-1.0, 2.0]]),
    }


@scenario("http", "grpc")
def a_sequence_has_state(session: Session) -> None:
    def piece(level: int, sequence: int, **flags: bool) -> None:
        given = _request(session, "meter", {"LEVEL": [[level]]}, sequence_id=sequence, **flags)
        session.send(given).result()

    piece(3, 101, sequence_start=True)
    piece(10, 102, sequence_start=True)
    piece(4, 101)
    piece(20, 102, sequence_end=True)
    piece(5, 101, sequence_end=True)
    piece(6, 101)


@scenario("stream", watch=("analyse", "gain", "frames"))
def an_ensemble_has_an_optional_and_a_decoupled_step(session: Session) -> Seen:
    def frames(audio: list[float]) -> Any:
        stream = session.stream()
        stream.send(_request(session, "mastering", {"AUDIO": [audio]}), empty_final=True)
        return stream.close()

    return {"quiet audio": frames([0.05, 0.01, -0.02]), "loud audio": frames([0.5, 0.25, -0.5, 1.0])}


@scenario("http", "grpc")
def recordings_of_different_lengths_are_accepted(session: Session) -> None:
    _ask(session, "lengths", AUDIO=[[1.0, 2.0, 3.0]])
    _ask(session, "lengths", AUDIO=[[1.0], [2.0]])


@scenario("http", "grpc")
def a_repeated_request_comes_from_the_cache(session: Session) -> None:
    for value in (1.0, 2.0, 1.0, 2.0):
        _ask(session, "fingerprint", AUDIO=[value, float(session.fresh)])


@scenario("http", "grpc")
def instances_share_a_resource(session: Session) -> None:
    asked = [_send(session, "disk", TRACK=[track]) for track in range(6)]
    for pending in asked:
        pending.result()


@scenario("http", "grpc")
def a_warm_up_ran_before_the_first_request(session: Session) -> None:
    _ask(session, "warm", VALUE=[1, 2])


@scenario("http", watch=("plays",))
def a_model_exports_metrics(session: Session) -> Seen:
    for seconds in (2.5, 1.5):
        _ask(session, "plays", SECONDS=[seconds])
    with urllib.request.urlopen(f"http://{session.server.metrics}/metrics", timeout=PATIENCE) as answer:
        return re.findall(r"^.*studio_.*$", answer.read().decode(), re.MULTILINE)


@scenario("http", "grpc")
def classes_have_labels(session: Session) -> Seen:
    """Clients ask for classes by a parameter of the output."""
    inputs = [{"name": "TEMPO", "datatype": "FP32", "shape": [2, 1]}]
    outputs = [{"name": "SCORES", "parameters": {"classification": 2}}]
    if session.way == "http":
        body = {"inputs": [{**inputs[0], "data": [118, 61]}], "outputs": outputs}
        return session.wire.http("POST", "/v2/models/genre/infer", body)
    typed = [{**inputs[0], "contents": {"fp32_contents": [118, 61]}}]
    wanted = [{"name": "SCORES", "parameters": {"classification": {"int64_param": 2}}}]
    return session.wire.rpc("ModelInfer", {"model_name": "genre", "inputs": typed, "outputs": wanted})


@scenario("http", "grpc")
def the_policy_chooses_versions(session: Session) -> None:
    for version in ("", "1", "2", "3"):
        given = _request(session, "release", {"NAME": [b"you"]}, model_version=version)
        session.send(given).result()
