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
    load,
)
from dialects.triton_forms.places import OPTIONS, Places
from dialects.triton_forms.repository import OTHERS

RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("triton_2_51.json").read_text())
#: By case, what a document has in addition to Triton's, as a path and its value, and why.
ADDITIONS: dict[str, tuple[str, Any, str]] = {
    "the configuration of chain": (
        "ensemble_scheduling.max_inflight_requests",
        0,
        "configurations have a newer field",
    ),
    "the metadata of choice": (
        "inputs.1.parameters",
        {"optional": True},
        "metadata says which inputs are optional",
    ),
}
#: Rows of the table of differences in docs/from-triton.md, which says why.
_STATUSES = "statuses say what a client can do"
_WHERE = "errors in a request say where they are"
_SAID = "errors describe the invalid request"
_STRICT = "what Triton ignores is refused"
_CRASHES = "what crashes Triton is refused"
_MISSING = "missing values are NaN"
_LABELS = "versions that are not numbers are unknown"
_LOADS = "load failures name the file"
_CODE = "code that a request brings is not executed"
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
        (400, "[request id: <id_unknown>] expected", _SAID),
    ),
    "a message with too many inputs": (
        "INVALID_ARGUMENT",
        "[request id: <id_unknown>] expected 1 inputs but got 2 inputs for model 'echo'. Got input(s)",
        _SAID,
    ),
    "only the optional input": (
        400,
        "[request id: <id_unknown>] expected number of inputs between 1",
        _STRICT,
    ),
    "an output twice": (
        400,
        "output 'y' already exists in request",
        _STRICT,
    ),
    "a message with an output twice": (
        "INVALID_ARGUMENT",
        "output 'y' already exists in request",
        _STRICT,
    ),
    "no batch dimension": (400, "[request id: <id_unknown>] unexpected shape for input 'x'", _SAID),
    "different batches": (400, "[request id: <id_unknown>] input 'z' batch size does not match", _SAID),
    "an empty batch": (
        400,
        "[request id: <id_unknown>] input 'x' of model 'pair' has an empty batch",
        _SAID,
    ),
    "a negative dimension": (400, "input 'x' has a negative dimension", _WHERE),
    "a message with a negative dimension": (
        "INVALID_ARGUMENT",
        "input 'x' has a negative dimension",
        _SAID,
    ),
    "a huge shape": (400, "Unable to parse 'data': Shape does not match", _CRASHES),
    "a number that does not fit": (
        400,
        "Unable to parse 'data': input 'x': Expected `int` <= 2147483647",
        _STRICT,
    ),
    "data nested too deeply": (400, "'data' of input 'x' is nested more than 100 levels deep", _WHERE),
    "an empty body": (400, "the body is empty", _SAID),
    "header length that is a text": (
        400,
        "invalid value of the header Inference-Header-Content-Length",
        _SAID,
    ),
    "no JSON": (400, "failed to parse the request JSON buffer: ", _WHERE),
    "half JSON": (400, "failed to parse the request JSON buffer: ", _WHERE),
    "a registration that is no JSON": (400, "failed to parse the request JSON buffer: ", _WHERE),
    "null among numbers": (200, '{"model_name": "echo"', _MISSING),
    "no classes": (400, "Unable to set 'classification'", _STRICT),
    "classes of texts": (400, "class result not available for output 'y'", _CRASHES),
    "parameters of an input that are a list": (400, "failed to parse the request JSON: ", _STRICT),
    "parameters of an output that are a list": (400, "failed to parse the request JSON: ", _STRICT),
    "generate with an object": (400, "The schema can not convert input 'x'", _WHERE),
    "a message with too many raw contents": ("INVALID_ARGUMENT", "expected 1 raw_input_contents", _STRICT),
    "a message with an unknown datatype": (
        "INVALID_ARGUMENT",
        "invalid datatype for input x",
        _SAID,
    ),
    "a version that is too large": (404, "failed to get model version from specified version", _STATUSES),
    "a version that is a word by gRPC": ("NOT_FOUND", "failed to get model version from", _STATUSES),
    "a negative version by gRPC": ("NOT_FOUND", "invalid model version specified '-1' ,", _STATUSES),
    **{
        f"{method} of {what}": ("NOT_FOUND", text, _STATUSES)
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
        f"{method} of {what}": (status, text, _STATUSES)
        for method, status in (("statistics", 404), ("ModelStatistics", "NOT_FOUND"))
        for what, text in (
            ("an unknown model", "requested model 'nobody' is not available"),
            ("a model that is not loaded", "requested model 'spare' is not available"),
            ("an unknown version", "requested model version is not available for model 'echo'"),
        )
    },
    "ModelStatistics of a version that is a word": (
        "NOT_FOUND",
        "failed to get model version from",
        _STATUSES,
    ),
    "ModelStatistics of a negative version": ("NOT_FOUND", "invalid model version specified", _STATUSES),
    **{
        f"{what} of a version that is a word": (
            404,
            "failed to get model version from",
            _LABELS,
        )
        for what in ("metadata", "configuration", "statistics")
    },
    "a version that is a word": (404, "failed to get model version from", _LABELS),
    "readiness of a version that is a word": (400, "Model version not ready: ", _LABELS),
    "ModelReady of a version that is a word": ("OK", "", _LABELS),
    "ModelReady of a negative version": ("OK", "", _LABELS),
    "a registration with a size that is a text": (
        400,
        "failed to parse the request JSON: Expected `int`",
        _WHERE,
    ),
    # loads
    "a load of an unknown model": (
        404,
        "failed to load 'nobody', failed to poll from model repo",
        _STATUSES,
    ),
    "a load of an unknown model by gRPC": (
        "NOT_FOUND",
        "failed to load 'nobody', failed to poll",
        _STATUSES,
    ),
    "a load of a broken model": (400, _BOOM, _LOADS),
    "a load of a broken model by gRPC": ("INVALID_ARGUMENT", _BOOM, _LOADS),
    **{
        f"a load of the model raising{way}": (
            status,
            "load failed for model 'raising': version 1 is at UNAVAILABLE state: Internal: RuntimeError: no",
            _LOADS,
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    "a load of an ensemble of a broken model": (
        400,
        f"load failed for model 'leaning': {_STEP}{_CAUSE}",
        _LOADS,
    ),
    **{
        f"a load of the model lasting{way}": (
            status,
            (
                "load failed for model 'lasting': ensemble 'lasting' depends on 'leaning' which is not valid."
                f" Model 'leaning' failed with error: {_STEP}{_CAUSE}"
            ),
            _LOADS,
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    **{
        f"a load of the model cold{way}": (
            status,
            "load failed for model 'cold': version 1 is at UNAVAILABLE state: Internal: failed to open",
            _STRICT,
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    **{
        f"a load of the model formless{way}": (
            status,
            "load failed for model 'formless': version 1 is at UNAVAILABLE state: 'first/formless/1' holds",
            _CRASHES,
        )
        for way, status in (("", 400), (" by gRPC", "INVALID_ARGUMENT"))
    },
    # Triton has forgotten the reason when such a model is loaded again.
    **{
        f"a load of the model {name} by gRPC": (
            "INVALID_ARGUMENT",
            f"load failed for model '{name}': {text}",
            _LOADS,
        )
        for name, text in (
            ("stumbling", "ensemble stumbling contains models that are not available or ambiguous: misspelt"),
            ("twofold", "ensemble twofold contains models that are not available or ambiguous: double"),
            ("unmapped", "in ensemble unmapped, ensemble tensor y is mapped from non-existing output q"),
        )
    },
    **dict.fromkeys(
        ("a load whose parameters are a list", "a load whose parameters are a text"),
        (400, "failed to parse the request JSON: Expected `object`", _WHERE),
    ),
    "a load that is a list": (400, "failed to parse the request JSON: Expected `object`", _STRICT),
    **dict.fromkeys(
        ("a load with an absolute file", "a load with a file of a version that is a word"),
        (400, "load failed for model 'spare': version ", _LABELS),
    ),
    "a load with an absolute file by gRPC": (
        "INVALID_ARGUMENT",
        "load failed for model 'spare': version tmp is at",
        _LABELS,
    ),
    "a load with a file that is no base64 at its end": (
        400,
        "the value of load parameter 'file:1/model.py' is",
        _STRICT,
    ),
    "a load with an empty file": (
        400,
        "load failed for model 'spare': version 1 is at UNAVAILABLE state: 'model.py' of model 'spare' came",
        _CODE,
    ),
    "a load of an unknown model with a configuration": (
        404,
        "failed to load 'nobody', failed to poll from model repo",
        _STATUSES,
    ),
    **{
        f"the {what} of a model without a class": (
            503,
            "Request for unknown model: 'classless' has no available versions",
            _STATUSES,
        )
        for what in ("metadata", "configuration")
    },
    "the statistics of a model without a class": (404, "requested model 'classless' is not", _STATUSES),
    "the statistics of a misspelt model": (404, "requested model 'misspelt' is not available", _STATUSES),
    "a broken model": (
        503,
        "Request for unknown model: 'broken' has no available versions",
        _STATUSES,
    ),
    "an unload with an unknown parameter": (400, "unrecognized unload parameter 'a'", _STRICT),
    "an unload with a parameter that is a text": (400, "invalid value type for 'unload_dependents'", _STRICT),
    "a load with a file that is no base64": (
        400,
        "the value of load parameter 'file:1/model.py' is",
        _LOADS,
    ),
    "a load that is no JSON": (
        400,
        "failed to parse the request JSON buffer: ",
        _WHERE,
    ),
    "a reserved key": (400, "cannot register shared memory region 'r' with key", _SAID),
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


@pytest.fixture(scope="module")
def attempted(ask: Ask) -> None:
    """Asks for the load of each model that cannot be loaded, unless the tests before have."""
    if not any("reason" in entry for entry in ask.run("the index")["said"]):
        for model in OTHERS:
            ask.send(load(model))


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_has_the_entries_of_triton(ask: Ask, places: Places, attempted: None, name: str) -> None:
    answer, recorded = places.hide(ask.run(name)), RECORDED[name]

    assert answer["status"] == recorded["status"]
    got, expected = _entries(answer), _entries(recorded)
    if name == "the index of ready models":  # Triton lists a model that is in two repositories here, too
        del expected["double"], expected["cold"], expected["spare"]
    unversioned = {"picky", "hollow"}  # Triton forgets them when their loads have failed
    assert got.keys() - unversioned == expected.keys() - unversioned
    for model, entries in expected.items():
        for entry, own in zip(entries, got[model], strict=True):
            if entry.get("state") == "READY" and model not in ("spare", "cold"):
                assert own == entry
            elif "reason" in entry and model != "spare":
                begin = entry.pop("reason").partition("\n")[0].rstrip(".").replace("{folder}/", "")
                assert begin in own.pop("reason")
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
