"""The repository: its index, loads and unloads."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

from scenarios.gate import PATIENCE
from scenarios.scenario import Seen, scenario
from scenarios.session import Session

_LOADS = "/v2/repository/models"
#: Models that do not load, each for another reason.
_FAILING = (
    *("nobody", "broken", "unfinished", "classless", "versionless"),
    *("misspelt", "misnamed", "stepless", "backendless"),
)
#: Models whose entries in the index stay the same.
_LASTING = ("gain", "mastering", "release", "broken")
_CONFIGURATION = {
    "backend": "python",
    "max_batch_size": 2,
    "input": [{"name": "IN", "data_type": "TYPE_INT32", "dims": [1]}],
    "output": [{"name": "OUT", "data_type": "TYPE_INT32", "dims": [1]}],
}
_MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        given = [pb_utils.get_input_tensor_by_name(one, "IN").as_numpy() + 1 for one in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", one)]) for one in given]
"""


def _settled(ask: Callable[[], Any], wanted: Callable[[Any], bool]) -> Any:
    """What `ask` returns once it is as wanted: an unload is answered before it has finished."""
    end = time.monotonic() + PATIENCE
    while not wanted(seen := ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"still {seen}")
        time.sleep(0.01)
    return seen


def _unloaded(entries: dict[str, Any]) -> bool:
    return all(one.get("state") == "UNAVAILABLE" for one in entries.values())


def _gone(session: Session, model: str) -> Seen:
    """The model's entries in the index once it is unloaded."""
    return _settled(lambda: _index(session, {}, model)["body"], _unloaded)


def _by_name(models: list[dict[str, Any]], wanted: tuple[str, ...]) -> dict[str, Any]:
    """The entries of an index for some models, by name and version."""
    return {
        f"{one.pop('name')} {one.pop('version', '')}".strip(): one for one in models if one["name"] in wanted
    }


def _index(session: Session, body: Any, *wanted: str) -> Seen:
    """The index over HTTP, of models that other scenarios do not change."""
    seen = session.wire.http("POST", "/v2/repository/index", body)
    if isinstance(seen["body"], list):
        seen["body"] = _by_name(seen["body"], wanted or _LASTING)
    return seen


@scenario("http")
def the_index_over_http(session: Session) -> Seen:
    bodies = {
        "all": {},
        "ready": {"ready": True},
        "not only ready": {"ready": False},
        "a text as ready": {"ready": "yes"},
        "an empty body": b"",
        "no JSON": b"nope",
        "another field": {"other": 1},
    }
    session.wire.http("POST", f"{_LOADS}/broken/load", {})
    return {
        **{name: _index(session, body) for name, body in bodies.items()},
        "a named repository": session.wire.http("POST", "/v2/repository/mine/index", {})["status"],
        "GET": session.wire.http("GET", "/v2/repository/index"),
    }


@scenario("http")
def a_model_is_loaded_and_unloaded(session: Session) -> Seen:
    infer = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1, 1], "data": [5]}]}
    return {
        "load": session.wire.http("POST", f"{_LOADS}/spare/load", {}),
        "ready": session.wire.http("GET", "/v2/models/spare/ready"),
        "infer": session.wire.http("POST", "/v2/models/spare/infer", infer),
        "load again": session.wire.http("POST", f"{_LOADS}/spare/load", {}),
        "load with an empty body": session.wire.http("POST", f"{_LOADS}/spare/load"),
        "unload": session.wire.http("POST", f"{_LOADS}/spare/unload", {}),
        "index": _gone(session, "spare"),
        "not ready": session.wire.http("GET", "/v2/models/spare/ready"),
        "metadata": session.wire.http("GET", "/v2/models/spare"),
        "infer when unloaded": session.wire.http("POST", "/v2/models/spare/infer", infer),
        "unload again": session.wire.http("POST", f"{_LOADS}/spare/unload", {}),
        "unload an unknown model": session.wire.http("POST", f"{_LOADS}/nobody/unload", {}),
        "load the latest of two versions": session.wire.http("POST", f"{_LOADS}/later/load", {}),
        "its metadata": session.wire.http("GET", "/v2/models/later"),
        "its older version": session.wire.http("GET", "/v2/models/later/versions/2/ready"),
        "unload it": session.wire.http("POST", f"{_LOADS}/later/unload", {}),
        "it is gone": _gone(session, "later"),
    }


@scenario("http", "grpc")
def models_that_do_not_load(session: Session) -> Seen:
    if session.way == "http":
        return {name: session.wire.http("POST", f"{_LOADS}/{name}/load", {}) for name in _FAILING} | {
            "index": _index(session, {"ready": True}),
            "ready": session.wire.http("GET", "/v2/health/ready"),
        }
    return session.wire.calls("RepositoryModelLoad", {name: {"model_name": name} for name in _FAILING})


@scenario("http")
def loads_with_parameters(session: Session) -> Seen:
    def parameters(**given: Any) -> dict[str, Any]:
        return {"parameters": {name.replace("_", ":", 1): value for name, value in given.items()}}

    config = json.dumps(_CONFIGURATION)
    code = base64.b64encode(_MODEL.encode()).decode()
    infer = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1, 1], "data": [5]}]}
    refused = {
        "no JSON": b"nope",
        "parameters are no object": {"parameters": 5},
        "a configuration that is no text": {"parameters": {"config": 5}},
        "a configuration that is no JSON": {"parameters": {"config": "nope"}},
        "an unknown field": {"parameters": {"config": '{"colour": 1}'}},
        "a wrong backend": {"parameters": {"config": '{"backend": "no_such_backend"}'}},
        "an unknown parameter": {"parameters": {"colour": "red"}},
        "files without a configuration": {"parameters": {"file:1/model.py": code}},
        "a file that is not in base64": {"parameters": {"config": config, "file:1/model.py": "%%%"}},
        "a file outside": {"parameters": {"config": config, "file:../../outside.py": code}},
    }
    seen = session.wire.post(f"{_LOADS}/spare/load", refused)
    seen["the configuration is replaced"] = session.wire.http(
        "POST", f"{_LOADS}/spare/load", {"parameters": {"config": config}}
    )
    seen["its batch"] = (
        session.wire.http("GET", "/v2/models/spare/config").get("body", {}).get("max_batch_size")
    )
    seen["the model is replaced"] = session.wire.http(
        "POST", f"{_LOADS}/spare/load", {"parameters": {"config": config, "file:1/model.py": code}}
    )
    seen["its answer"] = session.wire.http("POST", "/v2/models/spare/infer", infer)
    seen["a model from nothing"] = session.wire.http(
        "POST", f"{_LOADS}/made/load", {"parameters": {"config": config, "file:1/model.py": code}}
    )
    seen["its own answer"] = session.wire.http("POST", "/v2/models/made/infer", infer)
    for name in ("spare", "made"):
        session.wire.http("POST", f"{_LOADS}/{name}/unload", {})
        _gone(session, name)
    return seen


@scenario("http")
def routes_of_the_repository(session: Session) -> Seen:
    return {
        "load in a named repository": session.wire.http("POST", "/v2/repository/mine/models/spare/load", {}),
        "unload in a named repository": session.wire.http(
            "POST", "/v2/repository/mine/models/spare/unload", {}
        ),
        "neither load nor unload": session.wire.http("POST", f"{_LOADS}/spare/reload", {}),
        "no model": session.wire.http("POST", f"{_LOADS}//load", {}),
        "unload with a text": session.wire.http(
            "POST", f"{_LOADS}/nobody/unload", {"parameters": {"unload_dependents": "yes"}}
        ),
        "unload without JSON": session.wire.http("POST", f"{_LOADS}/nobody/unload", b"nope"),
    }


@scenario("grpc")
def the_repository_over_grpc(session: Session) -> Seen:
    def index(message: dict[str, Any], wanted: tuple[str, ...] = _LASTING) -> Any:
        seen = session.wire.rpc("RepositoryIndex", message)
        return {**seen, "reply": _by_name(seen["reply"]["models"], wanted)} if "reply" in seen else seen

    def gone() -> Any:
        return index({}, ("spare",))["reply"]

    def load(name: str, **parameters: Any) -> Any:
        return session.wire.rpc("RepositoryModelLoad", {"model_name": name, "parameters": parameters})

    config = json.dumps(_CONFIGURATION)
    code = base64.b64encode(_MODEL.encode()).decode()
    session.wire.http("POST", f"{_LOADS}/broken/load", {})
    return {
        "index": index({}),
        "index of ready ones": index({"ready": True}),
        "index of a named repository": index({"repository_name": "mine"}),
        "load": load("spare"),
        "load again": load("spare"),
        "unload": session.wire.rpc("RepositoryModelUnload", {"model_name": "spare"}),
        "unloaded": _settled(gone, _unloaded),
        "unload again": session.wire.rpc("RepositoryModelUnload", {"model_name": "spare"}),
        "unload an unknown model": session.wire.rpc("RepositoryModelUnload", {"model_name": "nobody"}),
        "no name": load(""),
        "a named repository": session.wire.rpc(
            "RepositoryModelLoad", {"model_name": "spare", "repository_name": "mine"}
        ),
        "an unknown parameter": load("spare", colour={"string_param": "red"}),
        "a configuration that is a number": load("spare", config={"int64_param": 5}),
        "a configuration that is no JSON": load("spare", config={"string_param": "nope"}),
        "files without a configuration": load("spare", **{"file:1/model.py": {"bytes_param": code}}),
        "a file that is a text": load(
            "spare", config={"string_param": config}, **{"file:1/model.py": {"string_param": "x"}}
        ),
        "a replaced model": load(
            "spare", config={"string_param": config}, **{"file:1/model.py": {"bytes_param": code}}
        ),
        "an unknown parameter of an unload": session.wire.rpc(
            "RepositoryModelUnload", {"model_name": "nobody", "parameters": {"colour": {"bool_param": True}}}
        ),
        "unload at the end": session.wire.rpc("RepositoryModelUnload", {"model_name": "spare"}),
        "unloaded at the end": _settled(gone, _unloaded),
    }
