"""How a worker process is started, and what for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from backline.workers.process.protocol import Load


@dataclass(frozen=True, slots=True)
class WorkerCommand:
    """How a worker is started, and with what. `environment` comes on top of the server's own."""

    load: Load
    python: str = sys.executable
    environment: Mapping[str, str] = field(default_factory=dict)
    #: Resident bytes above which it is killed; None for what the model says before it is loaded.
    memory_limit_bytes: int | None = None
    #: The cores that it is kept to; empty for all.
    cores: tuple[int, ...] = ()

    @property
    def label(self) -> str:
        """The model and version, for messages."""
        return f"model '{self.load.name}' version {self.load.version}"
