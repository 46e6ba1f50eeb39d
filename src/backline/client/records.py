"""What a server reports about itself and its models."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from backline.engine.values.signature import TensorSpec


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The name and version of the server program, and the protocol extensions it supports."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's inputs and outputs, with full shapes (-1 for variable dimensions), and served versions."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a load: its phase, the seconds since it began, and the bytes fetched so far and in all."""

    phase: str
    seconds: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0


@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One version of a model.

    `state` is READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN, ON_DEMAND if a request loads it, or empty if
    never loaded.

    Only Backline reports the fields after `reason`. `ready`: the version answers requests; `default`: it
    serves requests without a version; `labels`: those that point to it; `memory_bytes`: its size in memory
    (0 if unknown); `progress`: set during a load.
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


def answers(state: str) -> bool:
    """Whether a version in this state answers requests, for servers whose index has only the state."""
    return state in ("READY", "ON_DEMAND")


class _Listing(msgspec.Struct):
    models: list[str]
    versions: list[ModelIndex]


def read_listing(body: bytes) -> list[ModelIndex] | None:
    """The versions in an answer to GET /v2/models, sorted by model; None if the answer is not Backline's."""
    try:
        found = msgspec.json.decode(body, type=_Listing)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return complete_listing(found.models, found.versions)


def complete_listing(names: list[str], versions: list[ModelIndex]) -> list[ModelIndex]:
    """The versions sorted by model, plus an empty entry for each of `names` without a version."""
    known = {entry.name for entry in versions}
    return sorted(
        [*versions, *(ModelIndex(name) for name in names if name not in known)], key=lambda entry: entry.name
    )
