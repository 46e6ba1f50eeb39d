"""The generate extension: text in, text out, at once or as server-sent events."""

from __future__ import annotations

import json
from typing import Any

from oip_conformance import specification as spec
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Failure, Level
from oip_conformance.target import Target, check, equal, key, ok, refused

MUST, SHOULD, OBSERVED = Level
area = Area("generate", "generate")


def events(answer: Answer) -> list[Any]:
    """The documents of a stream of server-sent events."""
    found = []
    for block in answer.body.replace(b"\r\n", b"\n").split(b"\n\n"):
        lines = [line for line in block.split(b"\n") if line and not line.startswith(b":")]
        if not lines:
            continue
        check(all(line.startswith(b"data:") for line in lines), "lines that begin with 'data:'", lines)
        text = b"\n".join(line[5:].strip() for line in lines)
        try:
            found.append(json.loads(text))
        except ValueError as error:
            raise Failure(f"JSON in each event ({error})", text[:200]) from None
    return found


def _stream(t: Target, values: list[int], delay: int = 0) -> Answer:
    value, pause = t.input_names("repeat")
    return t.post(t.path("repeat", "generate_stream"), {value: values, pause: [delay]})


def _values(t: Target, documents: list[Any]) -> list[Any]:
    name = t.output_names("repeat")[0]
    return [item[0] if isinstance(item := key(d, name), list) else item for d in documents if "error" not in d]


def _text(t: Target, body: dict[str, Any], what: str = "generate") -> Answer:
    return t.post(t.path("text", what), body)


@area.row("text", MUST, spec.GENERATE_OUTPUT, "text")
def text(t: Target) -> None:
    """The answer to a text has the model's text in text_output."""
    document = ok(_text(t, {"text_input": "h\u00e9llo \u6f22"})).json()
    equal(key(document, "text_output"), "H\u00c9LLO \u6f22", "text_output")


@area.row("content-type", MUST, spec.GENERATE_ONE, "text")
def content_type(t: Target) -> None:
    """The answer of generate has the content type application/json."""
    answer = ok(_text(t, {"text_input": "a"}))
    check("application/json" in (answer.header("Content-Type") or ""), "application/json", answer.headers)


@area.row("model", MUST, spec.GENERATE_NAME, "text")
def model(t: Target) -> None:
    """The answer of generate names the model and its version."""
    document = ok(_text(t, {"text_input": "a"})).json()
    equal(key(document, "model_name"), t.name("text"), "model_name")
    key(document, "model_version", str)


@area.row("parameters", MUST, spec.GENERATE_EXTRA, "text")
def parameters(t: Target) -> None:
    """Parameters, in `parameters` or beside the text, do not hinder a model that has no use for them."""
    ok(_text(t, {"text_input": "a", "parameters": {"temperature": 0.5, "stream": False}}))
    ok(_text(t, {"text_input": "a", "max_tokens": 20}))


@area.row("version", MUST, spec.GENERATE_URL_VERSION, "text")
def version(t: Target) -> None:
    """The path of generate may name the version."""
    ok(t.post(t.path("text", "generate", "1"), {"text_input": "a"}))


@area.row("refused", MUST, spec.GENERATE_FAILED, "text")
def wrong(t: Target) -> None:
    """A request of generate without the model's input, and one that is not JSON, are errors."""
    refused(_text(t, {"no_such_input": "a"}))
    refused(t.post(t.path("text", "generate"), b'{"text_input": ', ("Content-Type", "application/json")))


@area.row("unknown-model", MUST, spec.GENERATE_FAILED)
def unknown_model(t: Target) -> None:
    """A request of generate to a model that does not exist is an error."""
    refused(t.post("/v2/models/no_such_model/generate", {"text_input": "a"}))


@area.row("several", OBSERVED, spec.GENERATE_ONE, "repeat")
def several(t: Target) -> str:
    """generate for a request with two responses."""
    value, pause = t.input_names("repeat")
    answer = t.post(t.path("repeat", "generate"), {value: [1, 2], pause: [0]})
    return f"status {answer.status}"


@area.row("stream", MUST, spec.GENERATE_DATA, "repeat")
def stream(t: Target) -> None:
    """generate_stream sends each response as one event of JSON, in the order of the model."""
    equal(_values(t, events(ok(_stream(t, [3, 1, 2])))), [3, 1, 2], "the responses")


@area.row("stream.content-type", MUST, spec.GENERATE_SSE, "repeat")
def stream_content_type(t: Target) -> None:
    """generate_stream has the content type text/event-stream."""
    answer = ok(_stream(t, [1]))
    check((answer.header("Content-Type") or "").startswith("text/event-stream"), "text/event-stream", answer.headers)


@area.row("stream.as-made", MUST, spec.GENERATE_SSE, "repeat")
def as_made(t: Target) -> None:
    """Events are sent as the model makes them, not all at the end."""
    answer = ok(_stream(t, [1, 2, 3], 200))
    times = [when for when, piece in answer.pieces if b"data" in piece]
    check(times[-1] - times[0] > 0.2, "events over 400 ms", f"all within {times[-1] - times[0]:.2f} s")


@area.row("stream.error", MUST, spec.GENERATE_STREAM_ERROR, "repeat")
def stream_error(t: Target) -> None:
    """An error after two events comes as an event with `error`."""
    documents = events(ok(_stream(t, [1, 2, -1])))
    equal(_values(t, documents), [1, 2], "the responses before the error")
    check(any("error" in d for d in documents), "an event with 'error'", documents)


@area.row("stream.early-error", MUST, spec.GENERATE_EARLY_ERROR, "repeat")
def early_error(t: Target) -> None:
    """A request of generate_stream that fails before inference is refused with a status and JSON, without events."""
    refused(t.post(t.path("repeat", "generate_stream"), {"no_such_input": [1]}))


@area.row("stream.client-leaves", MUST, spec.GENERATE_SSE, "repeat")
def client_leaves(t: Target) -> None:
    """A client that leaves in the middle of a stream harms no later request."""
    value, pause = t.input_names("repeat")
    body = {value: list(range(20)), pause: [50]}
    t.request("POST", t.path("repeat", "generate_stream"), body, stop_after=1)
    equal(_values(t, events(ok(_stream(t, [5])))), [5], "the responses")
