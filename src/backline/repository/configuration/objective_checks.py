"""What a latency objective cannot be joined with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from backline.repository.configuration import native

_OBJECTIVE = native.parameter("objective.p99_ms")
_DELAY = 1


def objective_faults(message: Any, name: str) -> Iterator[tuple[str, str]]:
    """What contradicts the objective of a model, if it has one, and the path of the field."""
    if _OBJECTIVE not in message.parameters:
        return
    batching = message.dynamic_batching
    why = f"the objective of {name} decides itself how long requests wait and how large batches are"
    if batching.max_queue_delay_microseconds:
        yield f"{why}: remove max_queue_delay_microseconds", "dynamic_batching.max_queue_delay_microseconds"
    if any(size != message.max_batch_size for size in batching.preferred_batch_size):
        yield f"{why}: remove preferred_batch_size", "dynamic_batching.preferred_batch_size"
    if any(
        policy.timeout_action == _DELAY
        for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values())
    ):
        yield (
            f"{why}: a request that comes too late is refused, so timeout_action can not be DELAY",
            "dynamic_batching",
        )
    path = f"parameters[{_OBJECTIVE}]"
    if message.HasField("sequence_batching"):
        yield (
            f"an objective refuses single requests, which the sequences of {name} would lack: remove it or sequence_batching",
            path,
        )
    if message.HasField("ensemble_scheduling"):
        yield f"ensemble {name} runs nothing itself: give the objective to the models of its steps", path
    if message.model_transaction_policy.decoupled:
        yield (
            f"the responses of {name} have no end that an objective could be for: remove it or 'decoupled'",
            path,
        )
