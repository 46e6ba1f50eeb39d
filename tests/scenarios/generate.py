"""The generate extension: JSON in, JSON or events out."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from scenarios.repository import Served
from scenarios.requests import plain_text
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

MODELS: dict[str, Served] = {}


def generate(session: Session, route: str, model: str, document: dict[str, Any]) -> dict[str, Any]:
    """The generate extension's answer; server-sent events as a list of their contents."""
    url = f"http://{session.server.http}/v2/models/{model}/{route}"
    request = urllib.request.Request(url, json.dumps(document).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, kind, body = answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        status, kind, body = error.code, error.headers["Content-Type"], error.read().decode()
    events = [json.loads(event.removeprefix("data: ")) for event in body.split("\n\n") if event]
    for event in events:
        event.pop("RUN", None)  # counts executions across scenarios
        if "error" in event:
            event["error"] = plain_text(event["error"])
    return {"status": status, "type": kind, "events": events}


@scenario("http")
def generate_with_one_response(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate", "many", {"IN": [5], "id": "a"})


@scenario("http")
def generate_with_several_responses(session: Session) -> Seen:
    return generate(session, "generate", "many", {"IN": [5, 6]})


@scenario("http")
def generate_with_no_response(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate", "many", {"IN": []})


@scenario("http")
def generate_with_an_error(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate", "many", {"IN": [5], "fail_at": 0})


@scenario("http")
def generate_stream_with_several_responses(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate_stream", "many", {"IN": [5, 6], "id": "a"})


@scenario("http")
def generate_stream_with_no_response(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate_stream", "many", {"IN": []})


@scenario("http")
def generate_stream_with_an_error_among_the_responses(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate_stream", "many", {"IN": [5, 6, 7], "fail_at": 1})


@scenario("http")
def generate_stream_with_an_error_first(session: Session) -> Seen:
    session.watch("many")
    return generate(session, "generate_stream", "many", {"IN": [5, 6], "fail_at": 0})


@scenario("http")
def generate_of_a_model_with_one_response(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"IN": 5})


@scenario("http")
def generate_without_an_input(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"other": 5})


@scenario("http")
def generate_stream_of_a_model_with_one_response(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate_stream", "joined", {"IN": 5, "id": "a"})


@scenario("http")
def generate_of_a_batch(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"IN": [1, 2, 3]})


@scenario("http")
def generate_with_a_parameters_object(session: Session) -> Seen:
    session.watch("joined")
    return generate(
        session, "generate", "joined", {"IN": 5, "parameters": {"fail": "no", "code": "INVALID_ARG"}}
    )


@scenario("http")
def generate_with_a_nested_object(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"IN": 5, "mine": {"a": 1}})


@scenario("http")
def generate_with_an_input_twice(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"IN": 5, "parameters": {"IN": 6}})


@scenario("http")
def generate_with_an_input_of_the_wrong_type(session: Session) -> Seen:
    session.watch("joined")
    return generate(session, "generate", "joined", {"IN": "five"})


@scenario("http")
def generate_in_a_sequence(session: Session) -> Seen:
    session.watch("oldest")
    first = generate(session, "generate", "oldest", {"IN": 1, "sequence_id": 7, "sequence_start": True})
    return [first, generate(session, "generate", "oldest", {"IN": 2, "sequence_id": 7, "sequence_end": True})]


@scenario("http", watch=("first", "second"))
def generate_of_an_ensemble(session: Session) -> Seen:
    session.watch("chain")
    return generate(session, "generate", "chain", {"IN": 5})


@scenario("http")
def generate_stream_of_an_unknown_model(session: Session) -> Seen:
    return generate(session, "generate_stream", "nobody", {"IN": 5})
