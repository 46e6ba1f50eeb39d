"""What became of a version, told to whoever reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from backline.engine.model import Model


@dataclass(frozen=True, slots=True)
class Step:
    """Something became of a version, or with "replaced" of one of its instances; `reason` is why it failed, or was put to sleep."""

    kind: Literal["loaded", "reloaded", "updated", "failed", "unloaded", "replaced"]
    model: Model
    reason: str = ""
    #: Whether a load that failed is tried again.
    again: bool = False
