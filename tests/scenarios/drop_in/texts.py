"""The generate extension, and streams of gRPC, with models of text."""

from __future__ import annotations

from typing import Any

from scenarios.drop_in.inference import encoded
from scenarios.exchanges import raw
from scenarios.scenario import Seen, scenario
from scenarios.session import Session


@scenario("http")
def generate_a_text(session: Session) -> Seen:
    bodies: dict[str, Any] = {
        "a text": {"TEXT": "some words"},
        "an id": {"TEXT": "some words", "id": "mine"},
        "a list": {"TEXT": ["some words"]},
        "two texts": {"TEXT": ["some", "words"]},
        "an empty text": {"TEXT": ""},
        "no text": {},
        "another field": {"TEXT": "some words", "temperature": 3},
        "parameters": {"TEXT": "some words", "parameters": {"temperature": 3}},
        "a nested object": {"TEXT": "some words", "other": {"a": 1}},
        "a nested object in parameters": {"TEXT": "some words", "parameters": {"nested": {"a": 1}}},
        "a number": {"TEXT": 5},
        "no JSON": b"nope",
        "a JSON list": [],
        "an empty body": b"",
    }
    return {
        **session.wire.post("/v2/models/text/generate", bodies),
        "a version": session.wire.http("POST", "/v2/models/text/versions/1/generate", {"TEXT": "words"}),
        "an unknown version": session.wire.http(
            "POST", "/v2/models/text/versions/9/generate", {"TEXT": "words"}
        ),
        "an unknown model": session.wire.http("POST", "/v2/models/nobody/generate", {"TEXT": "words"}),
        "numbers": session.wire.http("POST", "/v2/models/types/generate", {"INT32": [1, 2], "FP32": [0.5]}),
    }


@scenario("http")
def generate_a_stream_of_words(session: Session) -> Seen:
    bodies: dict[str, Any] = {
        "three words": {"TEXT": "one two three"},
        "an id": {"TEXT": "one two", "id": "mine"},
        "no words": {"TEXT": ""},
        "no text": {},
        "no JSON": b"nope",
    }
    one = {"TEXT": "one"}
    return {
        **session.wire.post("/v2/models/words/generate_stream", bodies),
        "of a model with one response": session.wire.http("POST", "/v2/models/text/generate_stream", one),
        "without a stream": session.wire.http("POST", "/v2/models/words/generate", one),
        "of several, without a stream": session.wire.http(
            "POST", "/v2/models/words/generate", {"TEXT": "one two"}
        ),
        "of an unknown model": session.wire.http("POST", "/v2/models/nobody/generate_stream", one),
    }


def _words(text: str, **fields: Any) -> dict[str, Any]:
    given = {"name": "TEXT", "datatype": "BYTES", "shape": [1]}
    return {"model_name": "words", "inputs": [given], **raw(encoded("BYTES", [text])), **fields}


@scenario("grpc")
def words_on_a_stream(session: Session) -> Seen:
    final = {"triton_enable_empty_final_response": {"bool_param": True}}
    errors = {"triton_grpc_error": "true"}
    unknown = _words("one", model_name="nobody", id="lost")
    wrong = {**_words("one"), "inputs": [{"name": "NOPE", "datatype": "BYTES", "shape": [1]}]}
    return {
        "two words": session.wire.stream([_words("one two")]),
        "with an id": session.wire.stream([_words("one", id="mine")]),
        "with an empty final response": session.wire.stream([_words("one", parameters=final)]),
        "no words": session.wire.stream([_words("")]),
        "no words, with an empty final response": session.wire.stream([_words("", parameters=final)]),
        "of a model with one response": session.wire.stream([_words("one", model_name="text")]),
        "the same, with an empty final response": session.wire.stream(
            [_words("one", model_name="text", parameters=final)]
        ),
        "no request": session.wire.stream([]),
        "an unknown model": session.wire.stream([unknown]),
        "an unknown model, then a known one": session.wire.stream([unknown, _words("one")]),
        "an unknown model, with errors as statuses": session.wire.stream([unknown], errors),
        "an unknown input": session.wire.stream([wrong]),
    }
