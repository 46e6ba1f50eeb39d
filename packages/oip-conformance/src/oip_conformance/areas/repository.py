"""The repository extension: what there is, loading and unloading."""

from __future__ import annotations

import time
from typing import Any

from oip_conformance import rpc
from oip_conformance import specification as spec
from oip_conformance.http1 import Answer
from oip_conformance.row import Area, Level, NotRun
from oip_conformance.target import Target, check, equal, key, ok, outputs, refused, rpc_refused
from oip_conformance.tensors import Tensor

MUST, SHOULD, OBSERVED = Level
area = Area("repository", "repository")
INPUT = Tensor("INPUT", "INT32", (2,), [1, 2])


def _index(t: Target, ready: bool | None = None) -> list[dict[str, Any]]:
    entries = ok(t.post("/v2/repository/index", {} if ready is None else {"ready": ready})).json()
    check(isinstance(entries, list), "a list", entries)
    return list(entries)


def _change(t: Target, model: str, what: str) -> Answer:
    return t.post(f"/v2/repository/models/{model}/{what}", {})


def _spare(t: Target, loaded: bool) -> str:
    """The name of the spare model, after it was loaded or unloaded."""
    name = t.name("spare")
    if not loaded and t.get(f"/v2/models/{name}/ready").status != 200:
        return name
    answer = _change(t, name, "load" if loaded else "unload")
    if not loaded and answer.status < 400:
        # The specification does not say that an unload has ended when it is answered.
        while t.get(f"/v2/models/{name}/ready").status == 200:
            time.sleep(0.02)
    elif answer.status >= 400 and name not in {entry.get("name") for entry in _index(t)}:
        raise NotRun(f"the repository has no model '{name}'")
    ok(answer)
    return name


@area.row("index", MUST, spec.INDEX_OK, "sum")
def index(t: Target) -> None:
    """The index is a list with an entry for a model that can be used."""
    names = [key(entry, "name", str, "an entry") for entry in _index(t)]
    check(t.name("sum") in names, f"an entry '{t.name('sum')}'", names)


@area.row("index-state", MUST, spec.INDEX_STATE, "sum")
def index_state(t: Target) -> None:
    """The entry of a loaded model has the state READY."""
    states = {entry.get("state") for entry in _index(t) if entry.get("name") == t.name("sum")}
    equal(states, {"READY"}, "the states")


@area.row("index-versions", SHOULD, spec.INDEX_NAME, "versioned")
def index_versions(t: Target) -> None:
    """A model with two versions has an entry for each."""
    versions = sorted(e.get("version", "") for e in _index(t) if e.get("name") == t.name("versioned"))
    equal(versions, ["1", "2"], "the versions")


@area.row("index-empty-body", OBSERVED, spec.INDEX)
def index_empty_body(t: Target) -> str:
    """A request for the index without a body."""
    return f"status {t.post('/v2/repository/index').status}"


@area.row("index-unloaded", MUST, spec.INDEX)
def index_unloaded(t: Target) -> None:
    """The index has models that are not loaded, and does not call them READY."""
    name = _spare(t, False)
    entries = [entry for entry in _index(t) if entry.get("name") == name]
    check(entries, f"an entry '{name}'", "none")
    check(all(entry.get("state") != "READY" for entry in entries), "another state than READY", entries)


@area.row("index-ready", MUST, spec.INDEX_READY)
def index_ready(t: Target) -> None:
    """An index of ready models only leaves out a model that is not loaded."""
    name = _spare(t, False)
    names = {entry.get("name") for entry in _index(t, ready=True)}
    check(name not in names, f"no entry '{name}'", sorted(map(str, names)))
    check(names, "entries of ready models", "none")


@area.row("load", MUST, spec.LOAD)
def load(t: Target) -> None:
    """A model that was loaded is ready and answers."""
    name = _spare(t, True)
    ok(t.get(f"/v2/models/{name}/ready"))
    equal(next(iter(outputs(t.infer("spare", INPUT)).values())).data, [1, 2], "the output")


@area.row("unload", MUST, spec.UNLOAD)
def unload(t: Target) -> None:
    """A model that was unloaded is not ready, and a request to it is an error."""
    _spare(t, True)
    name = _spare(t, False)
    check(t.get(f"/v2/models/{name}/ready").status >= 400, "a status of 400 or more", "200")
    refused(t.infer("spare", INPUT))


@area.row("unloaded.status", OBSERVED, spec.UNLOAD)
def unloaded_status(t: Target) -> str:
    """The status of a request to a model that is not loaded."""
    _spare(t, False)
    return f"status {t.infer('spare', INPUT).status}"


@area.row("reload", MUST, spec.LOAD)
def reload(t: Target) -> None:
    """Loading a model that is loaded succeeds, and it answers afterwards."""
    _spare(t, True)
    _spare(t, True)
    outputs(t.infer("spare", INPUT))


@area.row("load-unknown", MUST, spec.LOAD_FAILED)
def load_unknown(t: Target) -> None:
    """Loading a model that the repository does not have is an error."""
    refused(_change(t, "no_such_model", "load"))


@area.row("unload-unknown", OBSERVED, spec.UNLOAD)
def unload_unknown(t: Target) -> str:
    """Unloading a model that does not exist."""
    return f"status {_change(t, 'no_such_model', 'unload').status}"


@area.row("grpc-index", MUST, spec.REPOSITORY_RPC, "sum")
def grpc_index(t: Target) -> None:
    """RepositoryIndex lists the models that the index over REST lists, in the same states."""
    models = t.call("RepositoryIndex", rpc.message("RepositoryIndexRequest")).models
    got = sorted((m.name, m.version, m.state) for m in models)
    equal(got, sorted((e["name"], e.get("version", ""), e.get("state", "")) for e in _index(t)), "the entries")


@area.row("grpc-load", MUST, spec.REPOSITORY_RPC)
def grpc_load(t: Target) -> None:
    """RepositoryModelUnload and RepositoryModelLoad do what the routes do."""
    name = _spare(t, True)
    request = rpc.message("RepositoryModelRequest", model_name=name)
    t.call("RepositoryModelUnload", request)
    while t.get(f"/v2/models/{name}/ready").status == 200:
        time.sleep(0.02)
    t.call("RepositoryModelLoad", request)
    ok(t.get(f"/v2/models/{name}/ready"))


@area.row("grpc-load-unknown", MUST, spec.REPOSITORY_RPC)
def grpc_load_unknown(t: Target) -> None:
    """RepositoryModelLoad of a model that the repository does not have has a status other than OK."""
    request = rpc.message("RepositoryModelRequest", model_name="no_such_model")
    rpc_refused(lambda: t.call("RepositoryModelLoad", request))
