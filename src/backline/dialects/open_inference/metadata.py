"""What the server and its models are: metadata, states, the repository index. Plain data, the same for REST and gRPC."""

from __future__ import annotations

from typing import Any

from backline.engine.engine import Engine, Model, ModelState
from backline.engine.signature import TensorSpec
from backline.engine.tensor import Shape
from backline.version import __version__

SERVER_NAME = "backline"
#: Only what truly works.
EXTENSIONS = ("classification", "model_configuration", "binary_tensor_data", "parameters", "statistics")

#: How a scalar input is shown, as in Triton: perf_analyzer cannot send a shape without dimensions. Requests may use either.
SCALAR: Shape = (1,)


def server_metadata() -> dict[str, Any]:
    return {"name": SERVER_NAME, "version": __version__, "extensions": list(EXTENSIONS)}


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


def _entry(model: Model) -> dict[str, str]:
    entry = {"name": model.name, "version": model.version, "state": model.state.value}
    if model.reason:
        entry["reason"] = model.reason
    return entry


def _tensor(spec: TensorSpec, shape: Shape) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype.name, "shape": list(shape)}
