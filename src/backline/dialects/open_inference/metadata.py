"""What the server and its models are: metadata, states, the repository index. Plain data, the same for REST and gRPC."""

from __future__ import annotations

from time import monotonic
from typing import Any

from backline.engine.engine import Engine
from backline.engine.model import Model, ModelState
from backline.engine.private_places import for_clients
from backline.engine.signature import TensorSpec
from backline.engine.tensor import Shape
from backline.version import __version__

SERVER_NAME = "backline"
#: Only what truly works.
EXTENSIONS = (
    "classification",
    "sequence",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
    "generate",
)
#: What works where models may be changed by request.
CONTROL_EXTENSIONS = ("model_repository", "model_repository(unload_dependents)")
#: What works where clients may share memory with the server.
MEMORY_EXTENSIONS = ("system_shared_memory",)
#: What works where the log is a server's own.
LOG_EXTENSIONS = ("logging",)
#: What works where clients may change what is traced.
TRACE_EXTENSIONS = ("trace",)

#: How a scalar input is shown, as in Triton: perf_analyzer cannot send a shape without dimensions. Requests may use either.
SCALAR: Shape = (1,)


def server_metadata(engine: Engine) -> dict[str, Any]:
    extensions = list(EXTENSIONS)
    if engine.control is not None:
        extensions += CONTROL_EXTENSIONS
    if engine.shared_memory is not None:
        extensions += MEMORY_EXTENSIONS
    if engine.log_control is not None:
        extensions += LOG_EXTENSIONS
    if engine.trace_control is not None:
        extensions += TRACE_EXTENSIONS
    return {"name": SERVER_NAME, "version": __version__, "extensions": extensions}


def model_metadata(engine: Engine, name: str, version: str) -> dict[str, Any]:
    """Name, versions, platform, inputs and outputs with full shapes. Raises NotFound, or Unavailable when the version is not ready."""
    model = engine.find_ready(name, version)
    return {
        "name": name,
        "versions": engine.served_versions(name),
        "platform": model.platform or model.backend,
        "inputs": [_tensor(spec, spec.shape or SCALAR) for spec in model.signature.inputs],
        "outputs": [_tensor(spec, spec.shape) for spec in model.signature.outputs],
    }


def model_index(engine: Engine, *, only_ready: bool) -> list[dict[str, str]]:
    """All versions of all models with their states; a model without any version is there with its name only."""
    entries = []
    known = set()
    for model in engine.models():
        known.add(model.name)
        if model.state is ModelState.READY or not only_ready:
            entries.append(_entry(model))
    if not only_ready:
        entries.extend({"name": name} for name in engine.names() if name not in known)
    return sorted(entries, key=lambda entry: entry["name"])


def model_listing(engine: Engine) -> list[dict[str, Any]]:
    """All versions of all models: their states and reasons, the labels that point to them, what memory they take, how far a load is.

    `ready` says whether a request is answered, `default` whether requests without a version come to this one. `progress` is there during a
    load only; its seconds count from the load's begin, its bytes are those fetched from the repository.
    """
    listing = []
    for model in engine.models():
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
    if model.reason:
        entry["reason"] = for_clients(model.reason)
    return entry


def _tensor(spec: TensorSpec, shape: Shape) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.name, "shape": list(shape)}
