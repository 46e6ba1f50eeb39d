"""What a server tells about itself and its models."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from backline.engine.signature import TensorSpec


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The name and version of the server program, and the protocol extensions it names."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The inputs and outputs of a model, full shapes, -1 where a dimension varies; `versions` are those served."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is: its phase, the seconds since it began, and the bytes fetched from the repository, of how many in all."""

    phase: str
    seconds: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One version of a model. `state` is READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN, or empty when never loaded.

    The fields behind `reason` are Backline's: `ready` whether a request is answered, `default` whether requests without a version come
    here, `labels` those that point here, `memory_bytes` what the version takes (0 where it is not known), `progress` during a load.
    """

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
    ready: bool = False
    default: bool = False
    labels: tuple[str, ...] = ()
    memory_bytes: int = 0
    progress: Progress | None = None


class _Listing(msgspec.Struct):
    models: list[str]
    versions: list[ModelIndex]


def read_listing(body: bytes) -> list[ModelIndex] | None:
    """The models in the answer to GET /v2/models, by name; those without any version too. None where another server answered it."""
    try:
        found = msgspec.json.decode(body, type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return complete_listing(found.models, found.versions)


def complete_listing(names: list[str], versions: list[ModelIndex]) -> list[ModelIndex]:
    """The versions, and a line for every name that has none."""
    known = {entry.name for entry in versions}
    return sorted(
        [*versions, *(ModelIndex(name) for name in names if name not in known)], key=lambda entry: entry.name
    )
