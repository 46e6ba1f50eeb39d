"""What a request has to say of itself that is asked alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lone_parameters(config: Mapping[str, Any]) -> dict[str, int | bool]:
    """Parameters for a model with this configuration: where its requests belong to sequences, this one is a whole sequence."""
    batching = config.get("sequence_batching")
    if not batching or batching.get("iterative_sequence"):
        return {}
    return {"sequence_id": 1, "sequence_start": True, "sequence_end": True}
