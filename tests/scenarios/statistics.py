"""The statistics, beyond the counts that every scenario compares."""

from __future__ import annotations

from typing import Any

import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from scenarios.repository import Served
from scenarios.requests import failed
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

MODELS: dict[str, Served] = {}


def fields(of: Any) -> Any:
    """The names of all fields at every depth; for a list, those of its first element."""
    if isinstance(of, dict):
        return {name: fields(value) for name, value in sorted(of.items())}
    if isinstance(of, list):
        return [fields(of[0])] if of else []
    return type(of).__name__


def statistics(session: Session, model: str, version: str = "") -> Any:
    try:
        if session.way == "http":
            with tritonclient.http.InferenceServerClient(session.server.http) as client:
                return client.get_inference_statistics(model, version)
        with tritonclient.grpc.InferenceServerClient(session.server.grpc) as client:
            return client.get_inference_statistics(model, version, as_json=True)
    except InferenceServerException as error:
        return failed(error)


@scenario("http", "grpc")
def the_fields_of_a_model(session: Session) -> Seen:
    session.infer("joined", 1)
    session.pause()
    (counted,) = statistics(session, "joined")["model_stats"]
    return fields({name: value for name, value in counted.items() if name != "memory_usage"})


@scenario("http", "grpc")
def the_responses_of_a_decoupled_model(session: Session) -> Seen:
    stream = session.stream()
    stream.send(session.request("many", [5, 6]))
    stream.close()
    session.pause()
    (counted,) = statistics(session, "many")["model_stats"]
    return fields(counted.get("response_stats", {}).get("0"))


@scenario("http", "grpc")
def the_times_of_an_ensemble_are_those_of_its_steps(session: Session) -> Seen:
    def spent(model: str) -> dict[str, int]:
        (counted,) = statistics(session, model)["model_stats"]
        return {name: int(duration.get("ns", 0)) for name, duration in counted["inference_stats"].items()}

    models = ("fork", "first", "second", "adding")
    before = [spent(model) for model in models]
    session.infer("fork", 1)
    session.pause()
    whole, *steps = (
        {name: ns - earlier[name] for name, ns in spent(model).items()}
        for model, earlier in zip(models, before, strict=True)
    )
    return {
        name: whole[name] == sum(step[name] for step in steps)
        for name in ("compute_input", "compute_infer", "compute_output", "queue")
    }


@scenario("http", "grpc")
def one_version_of_a_model(session: Session) -> Seen:
    return [
        counted["name"] + " " + counted["version"]
        for counted in statistics(session, "joined", "1")["model_stats"]
    ]


@scenario("http", "grpc")
def an_unknown_model_in_statistics(session: Session) -> Seen:
    return statistics(session, "nobody")


@scenario("http", "grpc")
def an_unknown_version(session: Session) -> Seen:
    return statistics(session, "joined", "9")


@scenario("http", "grpc")
def all_models(session: Session) -> Seen:
    return sorted(counted["name"] for counted in statistics(session, "")["model_stats"])


@scenario("http", "grpc")
def an_invalid_request_is_not_counted(session: Session) -> None:
    session.infer("joined", [[1, 2]])


@scenario("http", "grpc")
def durations_add_up(session: Session) -> Seen:
    """A request's duration is at least the sum of its phases."""
    session.infer("joined", 1)
    session.pause()
    counted = statistics(session, "joined")["model_stats"][0]["inference_stats"]
    parts = sum(
        int(counted[name]["ns"]) for name in ("queue", "compute_input", "compute_infer", "compute_output")
    )
    return {"parts are no more than the whole": parts <= int(counted["success"]["ns"])}
