"""`backline tritonserver` answers as recorded from Triton 2.51 by record_triton.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.triton_server import tritonserver

pytest.importorskip("tritonclient")
from dialects.triton_forms.cases import (
    CONFIGURATIONS,
    LOADS,
    MEMORY,
    METADATA,
    NAMES,
    REQUESTS,
    Ask,
)
from dialects.triton_forms.places import OPTIONS, Places

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())
#: By case, what a document has in addition to Triton's, as a path and its value, and why.
ADDITIONS: dict[str, tuple[str, Any, str]] = {
    "the configuration of chain": (
        "ensemble_scheduling.max_inflight_requests",
        0,
        "a field that Triton 2.51 does not know yet",
    ),
    "the metadata of choice": (
        "inputs.1.parameters",
        {"optional": True},
        "clients see what they may leave out",
    ),
}
_NOT_FOUND = "what is not there is 404 and NOT_FOUND"
_ORDER = "Triton takes the inputs in an order of no meaning"
_STRICT = "what has no meaning, or loses data, is refused"
_CAUSE = "version 1 is at UNAVAILABLE state: Internal: ValueError: boom"
_BOOM = f"load failed for model 'broken': {_CAUSE}"
_STEP = (
    "ensemble 'leaning' depends on 'broken' which has no loaded version. Model 'broken' loading failed with"
    " error: "
)
#: By case, the status and the start of the text where they differ from Triton's, and why. Not listed are
#: clients' mistakes that Triton reports as its own errors, by 500 and INTERNAL.
DIFFERENCES: dict[str, tuple[Any, str, str]] = {
    **dict.fromkeys(
        ("one input too many", "too many with an optional input"),
        (400, "[request id: <id_unknown>] expected", "brackets are balanced, and names are sorted"),
    ),
    "a message with too many inputs": (
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] expected 1 inputs but got 2 inputs for model 'echo'. Got input(s)",
        "the same",
    ),
    "two wrong names of two": (400, "unexpected inference input 'p','q' for model 'pair'", "both are named"),
    "only the optional input": (
        400,
        "[request id: <id_unknown>] expected number of inputs between 1",
        _STRICT,
    ),
    "an output twice": (
        400,
        "output 'y' already exists in request",
        "newer versions of Triton refuse it too",
    ),
    "a message with an output twice": (
        "INVALID_ARGUMENT",
        "output 'y' already exists in request",
        "the same",
    ),
    "no batch dimension": (400, "[request id: <id_unknown>] unexpected shape for input 'x'", _ORDER),
    "different batches": (400, "[request id: <id_unknown>] input 'z' batch size does not match", _ORDER),
    "an empty batch": (
        400,
        "[request id: <id_unknown>] input 'x' of model 'pair' has an empty batch",
        _ORDER,
    ),
    "a negative dimension": (400, "input 'x' has a negative dimension", "the text says which and where"),
    "a message with a negative dimension": (
        "INVALID_ARGUMENT",
        "input 'x' has a negative dimension",
        "the same",
    ),
    "a huge shape": (400, "Unable to parse 'data': Shape does not match", "the model crashes in Triton"),
    "a number that does not fit": (
        400,
        "Unable to parse 'data': input 'x': Expected `int` <= 2147483647",
        _STRICT,
    ),
    "data nested too deeply": (400, "'data' of input 'x' is nested more than 100 levels deep", _STRICT),
    "binary data of the wrong size": (
        400,
        "[request id: <id_unknown>] input byte size mismatch for input 'x' for model 'echo'",
        "the announced size is wrong, whatever follows",
    ),
    "an empty body": (400, "the body is empty", "only a request that says so is raw"),
    "header length that is a text": (
        400,
        "invalid value of the header Inference-Header-Content-Length",
        _STRICT,
    ),
    "no JSON": (400, "failed to parse the request JSON buffer: ", "the parser has its own words"),
    "half JSON": (400, "failed to parse the request JSON buffer: ", "the parser has its own words"),
    "a registration that is no JSON": (400, "failed to parse the request JSON buffer: ", "the same"),
    "an input that is a number": (400, "Unable to parse 'inputs': attempt to access JSON non-array", _STRICT),
    "a sequence id that is a list": (400, "parameter 'sequence_id' has invalid type.", "as other parameters"),
    "no classes": (400, "Unable to set 'classification'", _STRICT),
    "classes of texts": (400, "class result not available for output 'y'", "Triton crashes"),
    "a message with too many raw contents": ("INVALID_ARGUMENT", "expected 1 raw_input_contents", _STRICT),
    "a message with an unknown datatype": (
        "INVALID_ARGUMENT",
        "invalid datatype for input x",
        "as over HTTP",
    ),
    "a message with another shape": (
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] unexpected shape for input 'x' for model 'echo'. Expected [4], got [2].",
        "a blank at the end of a gRPC message is left out",
    ),
    "a version that is too large": (404, "failed to get model version from specified version", _NOT_FOUND),
    "a version that is a word by gRPC": ("NOT_FOUND", "failed to get model version from", _NOT_FOUND),
    "a negative version by gRPC": ("NOT_FOUND", "invalid model version specified '-1' ,", _NOT_FOUND),
    **{
        f"{method} of {what}": ("NOT_FOUND", text, _NOT_FOUND)
        for method in ("ModelMetadata", "ModelConfig")
        for what, text in (
            (
                "a version that is a word",
                "failed to get model version from specified version string 'stable'",
            ),
            ("a negative version", "invalid model version specified '-1' , version should be"),
        )
    },
    **{
        f"{method} of {what}": (status, text, _NOT_FOUND)
        for method, status in (("statistics", 404), ("ModelStatistics", "NOT_FOUND"))
        for what, text in (
            ("an unknown model", "requested model 'nobody' is not available"),
            ("a model that is not loaded", "requested model 'spare' is not available"),
            ("an unknown version", "requested model version is not available for model 'echo'"),
            ("a version that is a word", "requested model version is not available for model 'echo'"),
        )
    },
    "ModelStatistics of a negative version": ("NOT_FOUND", "requested model version is not", _NOT_FOUND),
    **{
        f"{what} of a version that is a word": (
            404,
            "failed to get model version from",
            "a label is a version",
        )
        for what in ("metadata", "configuration")
    },
    "a version that is a word": (404, "failed to get model version from", "a label is a version"),
    "readiness of a version that is a word": (400, "Model version not ready: ", "a label is a version"),
    "ModelReady of a version that is a word": ("OK", "", "an unknown version is not ready"),
    "ModelReady of a negative version": ("OK", "", "an unknown version is not ready"),
    "the readiness of a model": (200, '{"name"', "KServe's clients read a document"),
    "a registration with a size that is a text": (
        400,
        "failed to parse the request JSON: Expected `int`",
        "where",
    ),
    # loads
    "a load of an unknown model": (
        404,
        "failed to load 'nobody', failed to poll from model repo",
        _NOT_FOUND,
    ),
    "a load of an unknown model by gRPC": (
        "NOT_FOUND",
        "failed to load 'nobody', failed to poll",
        _NOT_FOUND,
    ),
    "a load of a broken model": (400, _BOOM, "the line of the file instead of a traceback"),
    "a load of a broken model by gRPC": ("INVALID_ARGUMENT", _BOOM, "the same"),
    "a load of an ensemble of a broken model": (
        400,
        f"load failed for model 'leaning': {_STEP}{_CAUSE}",
        "load failures name the file",
    ),
    **{
        f"a load of the model lasting{way}": (
            status,
            (
                "load failed for model 'lasting': ensemble 'lasting' depends on 'leaning' which is not valid."
                f" Model 'leaning' failed with error: {_STEP}{_CAUSE}"
            ),
            "load failures name the file",
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    **{
        f"a load of the model cold{way}": (
            status,
            "load failed for model 'cold': version 1 is at UNAVAILABLE state: Internal: failed to open",
            "a warm-up sample without a batch size runs here",
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    **{
        f"a load of the model formless{way}": (
            status,
            "load failed for model 'formless': version 1 is at UNAVAILABLE state: 'first/formless/1' holds",
            "Triton hangs",
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    # Triton has forgotten the reason when such a model is loaded again.
    **{
        f"a load of the model {name} by gRPC": (
            "INVALID_ARGUMENT",
            f"load failed for model '{name}': {text}",
            "load failures name the file",
        )
        for name, text in (
            ("stumbling", "ensemble stumbling contains models that are not available or ambiguous: misspelt"),
            ("twofold", "ensemble twofold contains models that are not available or ambiguous: double"),
            ("unmapped", "in ensemble unmapped, ensemble tensor y is mapped from non-existing output q"),
        )
    },
    **dict.fromkeys(
        ("a load whose parameters are a list", "a load whose parameters are a text"),
        (400, "failed to parse the request JSON: Expected `object`", "where"),
    ),
    "a load that is a list": (400, "failed to parse the request JSON: Expected `object`", _STRICT),
    **dict.fromkeys(
        ("a load with an absolute file", "a load with a file of a version that is a word"),
        (400, "load failed for model 'spare': version ", "a version may be a word"),
    ),
    "a load with an absolute file by gRPC": (
        "INVALID_ARGUMENT",
        "load failed for model 'spare': version tmp is at",
        "the same",
    ),
    "a load with a file that is no base64 at its end": (
        400,
        "the value of load parameter 'file:1/model.py' is",
        _STRICT,
    ),
    "a load with an empty file": (
        400,
        "load failed for model 'spare': version 1 is at UNAVAILABLE state: 'model.py' of model 'spare' came",
        "code that a request brings is not executed",
    ),
    "a load of an unknown model with a configuration": (
        404,
        "failed to load 'nobody', failed to poll from model repo",
        _NOT_FOUND,
    ),
    **{
        f"the {what} of a model without a class": (
            503,
            "Request for unknown model: 'classless' has no available versions",
            "an unloaded version is not ready",
        )
        for what in ("metadata", "configuration")
    },
    "the statistics of a model without a class": (404, "requested model 'classless' is not", _NOT_FOUND),
    "the statistics of a misspelt model": (404, "requested model 'misspelt' is not available", _NOT_FOUND),
    "a broken model": (
        503,
        "Request for unknown model: 'broken' has no available versions",
        "an unloaded version is not ready",
    ),
    "an unload with an unknown parameter": (400, "unrecognized unload parameter 'a'", _STRICT),
    "an unload with a parameter that is a text": (400, "invalid value type for 'unload_dependents'", _STRICT),
    "a load with a file that is no base64": (
        400,
        "the value of load parameter 'file:1/model.py' is",
        _STRICT,
    ),
    "a load that is no JSON": (
        400,
        "failed to parse the request JSON buffer: ",
        "the parser has its own words",
    ),
    "a reserved key": (400, "cannot register shared memory region 'r' with key", "newer versions of Triton"),
}


#: The cases that ask for an index. Models that could not be read have a reason in it, unlike in Triton.
INDEXES = (
    "the index",
    "the index of ready models",
    "the index by gRPC",
    "an index of a named repository",
)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with Places(tmp_path_factory.mktemp("forms")) as places:
        yield places


@pytest.fixture(scope="module")
def ask(places: Places, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    log = tmp_path_factory.mktemp("log") / "log"
    with tritonserver(places.first, log, f"--model-repository={places.second}", *OPTIONS) as server:
        server.wait_started()
        yield Ask(server.http_port, server.grpc_port, places.shared_object)


def without(document: Any, path: str) -> Any:
    """Removes the value at a path and returns it."""
    *parents, last = path.split(".")
    for key in parents:
        document = document[int(key) if key.isdecimal() else key]
    return document.pop(last)


@pytest.mark.parametrize("name", [*CONFIGURATIONS, *METADATA])
def test_configurations_and_metadata_are_those_of_triton(ask: Ask, places: Places, name: str) -> None:
    answer = places.hide(ask.run(name))

    if name in ADDITIONS:
        path, value, _ = ADDITIONS[name]
        assert without(answer["said"], path) == value
    assert answer == RECORDED[name]


def says(answer: dict[str, Any]) -> str:
    """The text of an error, or the whole document."""
    said = answer["said"]
    if isinstance(said, dict) and "error" in said:
        said = said["error"]
    return said if isinstance(said, str) else json.dumps(said, sort_keys=True)


def expected(name: str) -> tuple[Any, str]:
    """The status, and the start of the text."""
    if name in DIFFERENCES:
        return DIFFERENCES[name][:2]
    recorded = RECORDED[name]
    status = {500: 400, "INTERNAL": "INVALID_ARGUMENT"}.get(recorded["status"], recorded["status"])
    # A version's reason ends with ";" and a line feed: what Backline adds to the reason comes before these.
    # Clients see paths from the repository's name on.
    return status, says(recorded).replace("{folder}/", "").rstrip(";\n")


@pytest.mark.parametrize(
    "name", [name for name in (*REQUESTS, *NAMES, *MEMORY, *LOADS) if name not in INDEXES]
)
def test_an_answer_begins_with_that_of_triton(ask: Ask, places: Places, name: str) -> None:
    answer = places.hide(ask.run(name))

    status, text = expected(name)
    assert (answer["status"], says(answer)[: len(text)]) == (status, text), says(answer)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_has_the_entries_of_triton(ask: Ask, places: Places, name: str) -> None:
    for case in LOADS if name == INDEXES[0] else ():
        ask.run(case)

    answer, recorded = places.hide(ask.run(name)), RECORDED[name]

    assert answer["status"] == recorded["status"]
    got, expected = _entries(answer), _entries(recorded)
    assert got.keys() == expected.keys()
    for model, entries in expected.items():
        for entry, own in zip(entries, got[model], strict=True):
            if entry.get("state") == "READY" and model not in ("spare", "cold"):
                assert own == entry
            elif "reason" in entry and model != "spare":
                assert own.pop("reason").startswith(entry.pop("reason").partition("\n")[0].rstrip("."))
                assert own == entry
            else:  # Triton only names a model that it could not read, or that it has not been asked to load
                assert own.keys() <= {"name", "version", "state", "reason"}
                assert own.get("state", "UNAVAILABLE") == "UNAVAILABLE"


def _entries(answer: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    said = answer["said"]
    entries: dict[str, list[dict[str, Any]]] = {}
    for entry in said if isinstance(said, list) else said["models"]:
        entries.setdefault(entry["name"], []).append(entry)
    return entries


def test_listed_differences_exist() -> None:
    listed = [name for name, (status, text, _) in DIFFERENCES.items() if (status, text) == _recorded(name)]
    assert listed == []


def _recorded(name: str) -> tuple[Any, str] | None:
    return None if "ended" in RECORDED[name] else (RECORDED[name]["status"], says(RECORDED[name]))
