"""Whether the sequence batching of a configuration contradicts itself: Triton's rules and texts (core/src/model_config_utils.cc)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def sequence_faults(batching: Any, limit: int, name: str) -> Iterator[tuple[str, str]]:
    """What is wrong, and the path of the field, in Triton's order; `limit` is max_batch_size."""
    yield from ()
