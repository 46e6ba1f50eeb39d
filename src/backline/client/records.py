"""What a server tells about itself and its models."""

from __future__ import annotations

from dataclasses import dataclass

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
class ModelIndex:
    """One line of the repository's index. `state` is READY, LOADING, UNLOADING, UNAVAILABLE, UNKNOWN, or empty when never loaded."""

    name: str
    version: str = ""
    state: str = ""
    reason: str = ""
