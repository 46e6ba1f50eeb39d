"""Collects the metadata of the server and its models, and the repository index, for both REST and gRPC."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

from backline.access.identity import Identity
from backline.access.scope import Scope
from backline.dialects.answers import encode_json
from backline.engine.engine import Engine
from backline.engine.model import NO_VERSION, Model, ModelState
from backline_client.values.private_places import for_clients
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape
from backline_client.version import __version__

#: Returns whether the caller may see the model with this name.
MaySee: TypeAlias = Callable[[str], bool]
#: The server's extensions: those that Triton also lists, in Triton's order, followed by one that Triton has
#: but does not list.
EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "system_shared_memory",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "trace",
    "logging",
    "generate",
)
#: The shape shown for a scalar input, as in Triton, because perf_analyzer needs a dimension. Requests may use
#: [] or [1].
SCALAR: Shape = (1,)


def server_metadata(engine: Engine) -> dict[str, Any]:
    # The server offers these extensions only if the engine has the parts that the extensions control.
    controlled = {
        "model_repository": engine.control,
        "model_repository(unload_dependents)": engine.control,
        "system_shared_memory": engine.shared_memory,
        "logging": engine.log_control,
        "trace": engine.trace_control,
    }
    extensions = [name for name in EXTENSIONS if controlled.get(name, engine) is not None]
    return {"name": engine.server_name, "version": __version__, "extensions": extensions}


def model_metadata(engine: Engine, name: str, version: str) -> dict[str, Any]:
    """Returns all fields of the gRPC message: name, versions, platform, and inputs and outputs with full
    shapes.

    Raises NotFound for an unknown model or version, and Unavailable if the version is not ready.
    """
    model = engine.find_ready(name, version)
    table = any(spec.column for spec in model.signature.inputs)
    return {
        "name": name,
        # As in Triton, metadata of one version lists only that version.
        "versions": [model.version] if version else engine.served_versions(name),
        "platform": model.platform or model.backend,
        "inputs": [_tensor(spec, spec.shape or SCALAR, table) for spec in model.signature.inputs],
        "outputs": [_tensor(spec, spec.shape, table) for spec in model.signature.outputs],
    }


def rest_metadata(engine: Engine, name: str, version: str) -> dict[str, Any]:
    """Returns the same as `model_metadata`, with the parameter `optional` on each optional input."""
    document = model_metadata(engine, name, version)
    for entry, spec in zip(
        document["inputs"], engine.find_ready(name, version).signature.inputs, strict=True
    ):
        if spec.optional:
            entry["parameters"] = {**entry.get("parameters", {}), "optional": True}
    return document


def visible_to(identity: Identity | None) -> MaySee:
    """Returns a function that says whether the caller may read about a model.

    `identity` is None on a server without identities.
    """
    if identity is None:
        return lambda _: True
    return partial(identity.may, Scope.READ)


def model_index(engine: Engine, may_see: MaySee, *, only_ready: bool) -> list[dict[str, str]]:
    """Lists all versions of the models that the caller may see.

    A model without versions is listed by name only.
    """
    engine.check_live()
    entries = []
    known = set()
    for model in engine.models():
        known.add(model.name)
        if (model.state is ModelState.READY or not only_ready) and may_see(model.name):
            entries.append(_entry(model))
    if not only_ready:
        entries.extend({"name": name} for name in engine.names() if name not in known and may_see(name))
    return sorted(entries, key=lambda entry: entry["name"])


def model_listing(engine: Engine, may_see: MaySee) -> list[dict[str, Any]]:
    """Lists all versions of the models that the caller may see: state, reason, labels, memory, load progress.

    `ready` says whether the version takes requests, and `default` whether requests that name no version go to
    it. `progress` is present only during a load: the phase of the load, the seconds since the load started,
    and the bytes fetched so far and in total (see LoadProgress).
    """
    listing = []
    for model in engine.models():
        if not may_see(model.name):
            continue
        labels = engine.labels(model.name)
        entry: dict[str, Any] = {
            "name": model.name,
            "version": model.version,
            "state": model.state.value,
            "reason": for_clients(model.reason),
            "ready": model.ready,
            "default": model.answers and engine.find(model.name) is model,
            "labels": sorted(label for label, version in labels.items() if version == model.version),
            "memory_bytes": model.memory_bytes,
        }
        progress = model.progress
        if progress is not None:
            entry["progress"] = {
                "phase": progress.phase,
                "seconds": round(monotonic() - progress.began, 3),
                "bytes_done": progress.bytes_done,
                "bytes_total": progress.bytes_total,
            }
        listing.append(entry)
    return listing


def _entry(model: Model) -> dict[str, str]:
    entry = {"name": model.name, "version": model.version, "state": model.state.value}
    if model.version == NO_VERSION:  # Triton names the version only of models that it can read
        del entry["version"]
    if model.reason:
        entry["reason"] = for_clients(model.reason)
    return entry


def _tensor(spec: TensorSpec, shape: Shape, table: bool) -> dict[str, Any]:
    tensor: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype.name, "shape": list(shape)}
    parameters: dict[str, Any] = {"json": spec.json} if spec.json else {}
    if spec.column:
        parameters["column"] = True
    if table and spec.labels:  # parameters are scalars in gRPC
        parameters["labels"] = encode_json(spec.labels).decode()
    if parameters:
        tensor["parameters"] = parameters
    return tensor
