"""Metadata: what the server is, what a model takes and returns, and what happens for names that do not exist."""

from __future__ import annotations

from oip_conformance import specification as spec
from oip_conformance.row import Area, Level
from oip_conformance.suite_models import identity
from oip_conformance.target import Target, check, equal, key, ok, outputs, refused
from oip_conformance.tensors import DATATYPES, fp32

MUST, SHOULD, OBSERVED = Level
area = Area("metadata", "required")
#: BF16 is in only one of the two specifications.
_NAMES = [name for name in DATATYPES if name != "BF16"]


@area.row("server", MUST, spec.SERVER_METADATA)
def server(t: Target) -> None:
    """The server's metadata is an object, with status 200."""
    check(isinstance(ok(t.get("/v2")).json(), dict), "an object", t.exchanges[-1][1])


@area.row("server.name", MUST, spec.SERVER_NAME)
def server_name(t: Target) -> None:
    """The server's metadata has its name."""
    check(key(ok(t.get("/v2")).json(), "name", str), "a name", "an empty text")


@area.row("server.version", MUST, spec.SERVER_VERSION)
def server_version(t: Target) -> None:
    """The server's metadata has its version, as a string."""
    check(key(ok(t.get("/v2")).json(), "version", str), "a version", "an empty text")


@area.row("server.extensions", MUST, spec.SERVER_EXTENSIONS)
def server_extensions(t: Target) -> None:
    """The server's metadata lists its extensions, as strings."""
    extensions = key(ok(t.get("/v2")).json(), "extensions", list)
    check(all(isinstance(item, str) for item in extensions), "strings", extensions)


@area.row("json", SHOULD, spec.SERVER_METADATA, "sum")
def content_type(t: Target) -> None:
    """Metadata has the content type application/json."""
    for path in ("/v2", t.path("sum")):
        answer = ok(t.get(path))
        check("application/json" in (answer.header("Content-Type") or ""), "application/json", answer.headers)


@area.row("model", MUST, spec.MODEL_METADATA, "sum")
def model(t: Target) -> None:
    """A model's metadata is an object, with status 200."""
    check(isinstance(ok(t.get(t.path("sum"))).json(), dict), "an object", t.exchanges[-1][1])


@area.row("model.name", MUST, spec.MODEL_NAME, "sum")
def model_name(t: Target) -> None:
    """A model's metadata has the name that the path has."""
    equal(key(ok(t.get(t.path("sum"))).json(), "name", str), t.name("sum"), "the name")


@area.row("model.versions", MUST, spec.MODEL_VERSIONS, "sum")
def model_versions(t: Target) -> None:
    """The versions in a model's metadata, if there are any, are strings, and each has metadata of its own."""
    versions = ok(t.get(t.path("sum"))).json().get("versions") or []
    check(isinstance(versions, list) and all(isinstance(v, str) for v in versions), "strings", versions)
    for version in versions:
        ok(t.get(t.path("sum", version=version)))


@area.row("model.all-versions", SHOULD, spec.MODEL_VERSIONS, "versioned")
def all_versions(t: Target) -> None:
    """A model with two versions that can be requested lists both."""
    versions = key(ok(t.get(t.path("versioned"))).json(), "versions", list)
    equal(sorted(versions), ["1", "2"], "the versions")


@area.row("model.platform", MUST, spec.MODEL_PLATFORM, "sum")
def model_platform(t: Target) -> None:
    """A model's metadata has its platform, as a string."""
    key(ok(t.get(t.path("sum"))).json(), "platform", str)


def _ports(t: Target, name: str, kind: str) -> list[dict[str, object]]:
    entries: list[dict[str, object]] = key(ok(t.get(t.path(name))).json(), kind, list)
    return entries


@area.row("model.inputs", MUST, spec.MODEL_INPUTS, "sum")
def model_inputs(t: Target) -> None:
    """A model's metadata lists its inputs, each by its name."""
    names = [key(entry, "name", str, "an input") for entry in _ports(t, "sum", "inputs")]
    equal(sorted(names), sorted(t.input_names("sum")), "the inputs")


@area.row("model.outputs", MUST, spec.MODEL_OUTPUTS, "sum")
def model_outputs(t: Target) -> None:
    """A model's metadata lists its outputs, each by its name."""
    names = [key(entry, "name", str, "an output") for entry in _ports(t, "sum", "outputs")]
    equal(sorted(names), sorted(t.output_names("sum")), "the outputs")


@area.row("tensor.complete", MUST, spec.TENSOR_METADATA, "sum")
def tensor_complete(t: Target) -> None:
    """Each input and output has a name, a datatype and a shape of whole numbers."""
    for entry in _ports(t, "sum", "inputs") + _ports(t, "sum", "outputs"):
        key(entry, "datatype", str, f"tensor {entry.get('name')}")
        shape = key(entry, "shape", list, f"tensor {entry.get('name')}")
        check(all(type(size) is int for size in shape), "whole numbers", shape)


@area.row("tensor.variable", MUST, spec.TENSOR_SHAPE, "identity_fp32")
def tensor_variable(t: Target) -> None:
    """A dimension of any size is -1 in the metadata."""
    equal(_ports(t, "identity_fp32", "inputs")[0].get("shape"), [-1, -1], "the shape")


@area.row("tensor.batch", SHOULD, spec.TENSOR_SHAPE, "sum")
def tensor_batch(t: Target) -> None:
    """A model with batches shows the batch dimension, as -1, before the others."""
    for entry in _ports(t, "sum", "inputs") + _ports(t, "sum", "outputs"):
        equal(entry.get("shape"), [-1, 4], f"the shape of '{entry.get('name')}'")


@area.row("datatypes", MUST, spec.TENSOR_DATATYPE, *map(identity, _NAMES))
def datatypes(t: Target) -> None:
    """The metadata of models with tensors of each datatype names that datatype."""
    for name in _NAMES:
        for kind in ("inputs", "outputs"):
            equal(_ports(t, identity(name), kind)[0].get("datatype"), name, f"{identity(name)}: the datatype in {kind}")


@area.row("version", MUST, spec.MODEL_METADATA, "versioned")
def version(t: Target) -> None:
    """The metadata of a version is found under the version's path."""
    document = ok(t.get(t.path("versioned", version="2"))).json()
    equal(key(document, "name"), t.name("versioned"), "the name")


@area.row("unknown-model", MUST, spec.METADATA_ERROR)
def unknown_model(t: Target) -> None:
    """The metadata of a model that does not exist is an error: a status of 400 or more, and `error` in the body."""
    refused(t.get("/v2/models/no_such_model"))


@area.row("unknown-version", MUST, spec.METADATA_ERROR, "sum")
def unknown_version(t: Target) -> None:
    """The metadata of a version that does not exist is an error."""
    refused(t.get(t.path("sum", version="99")))


@area.row("unknown-model.names-it", SHOULD, spec.METADATA_ERROR)
def names_it(t: Target) -> None:
    """The error for an unknown model names the model."""
    message = refused(t.get("/v2/models/no_such_model"))
    check("no_such_model" in message, "an error that contains 'no_such_model'", message)


@area.row("case", MUST, spec.CASE, "sum")
def case(t: Target) -> None:
    """Names of models are case-sensitive: a name in other letters is unknown."""
    name = t.name("sum")
    other = name.swapcase()
    check(t.get(f"/v2/models/{other}").status >= 400, f"a status of 400 or more for '{other}'", "200")


@area.row("unknown-route", MUST, spec.REQUIRED_APIS)
def unknown_route(t: Target) -> None:
    """A path that the protocol does not have is not answered with success."""
    answer = t.get("/v2/no/such/route")
    check(400 <= answer.status < 600, "a status of 400 or more", answer.status)


@area.row("matches-answers", MUST, spec.MODEL_OUTPUTS, "sum")
def matches_answers(t: Target) -> None:
    """The outputs of an inference are those that the metadata lists, with the datatypes that it names."""
    rows = fp32("LEFT", [1, 2, 3, 4]), fp32("RIGHT", [5, 6, 7, 8])
    found = outputs(t.infer("sum", *rows))
    listed = {entry["name"]: entry["datatype"] for entry in _ports(t, "sum", "outputs")}
    equal({name: tensor.datatype for name, tensor in found.items()}, listed, "the outputs")
