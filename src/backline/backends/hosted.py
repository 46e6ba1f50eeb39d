"""Models that are not loaded in this process: what a worker needs to know to load one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from backline.engine.instance_group import InstanceGroup


@dataclass(frozen=True, slots=True)
class HostedModel:
    """What a backend's `load` gives for a model that runs in worker processes.

    `adapter` names what makes the model there, see workers/child/worker_model.py. `python` is the interpreter of the workers,
    None for that of the environment which the model's files ask for, or else the server's; `environment` is what comes on top of the
    server's variables.
    """

    path: Path
    adapter: str
    python: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Of a `path` that is an archive: the folder in it ("" for all of it) to be unpacked, which takes its place.
    packed: str | None = None
    #: What the adapter gets beside the parameters of the configuration.
    parameters: Mapping[str, str] = field(default_factory=dict)
    #: Where its instances run by what its own files say, if the configuration says nothing.
    groups: tuple[InstanceGroup, ...] = ()
