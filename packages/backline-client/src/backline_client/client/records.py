"""Records of what a server reports about itself and its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
from msgspec import structs

from backline_client.client.errors import UNREADABLE
from backline_client.values.decodable import decodable
from backline_client.values.signature import TensorSpec


@decodable
@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """The name and version of the server program, and the protocol extensions it supports."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's inputs and outputs, and the versions served. Shapes include the batch dimension; a variable
    dimension is -1.

    Over gRPC, and from Triton, metadata does not say which inputs are optional; see `completed`.
    """

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def completed(self, config: Mapping[str, Any]) -> ModelMetadata:
        """Returns the same metadata, with each input that is optional in the configuration marked as such."""
        optional = {entry["name"] for entry in config.get("input", ()) if entry.get("optional")}
        inputs = tuple(
            structs.replace(spec, optional=spec.optional or spec.name in optional) for spec in self.inputs
        )
        return replace(self, inputs=inputs)


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a load: the phase, the seconds since the load began, and the bytes fetched so far and in
    total.
    """

    phase: str
    seconds: float = 0.0
    bytes_done: int = 0
    bytes_total: int = 0


@decodable
@dataclass(frozen=True, slots=True)
class ModelIndex:
    """One version of a model. `state` is READY, LOADING, UNLOADING, UNAVAILABLE or UNKNOWN; ON_DEMAND if a
    request would load the version; or empty if the version was never loaded.

    Only Backline reports the fields after `reason`; for other servers, `ready` follows from `state`. `ready`
    means that the version serves requests, and `default` that it serves requests that name no version.
    `labels` are the labels that point to the version, `memory_bytes` is its size in memory (0 if unknown),
    and `progress` is set during a load.
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
    """Returns whether a version in this state serves requests. Used for servers that report only the
    state.
    """
    return state in ("READY", "ON_DEMAND")


@decodable
class _Listing(msgspec.Struct):
    models: list[str]
    versions: list[ModelIndex]


def read_listing(body: bytes) -> list[ModelIndex] | None:
    """Returns the versions in a response to GET /v2/models, sorted by model; None if the server is not
    Backline.
    """
    try:
        found = msgspec.json.decode(body, type=_Listing)
    except UNREADABLE:
        return None
    return complete_listing(found.models, found.versions)


def complete_listing(names: list[str], versions: list[ModelIndex]) -> list[ModelIndex]:
    """Returns the versions sorted by model, plus an empty entry for each of `names` without a version."""
    known = {entry.name for entry in versions}
    return sorted(
        [*versions, *(ModelIndex(name) for name in names if name not in known)], key=lambda entry: entry.name
    )
