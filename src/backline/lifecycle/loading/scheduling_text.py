"""How a version's requests are scheduled, in a line for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from backline.engine.model_config import ModelConfig, QueuePolicy
from backline.lifecycle.loading.run_time import format_seconds

if TYPE_CHECKING:
    from backline.engine.joining import Joining
    from backline.engine.sequence_batching import SequenceBatching


def scheduling_text(
    config: ModelConfig,
    batch_limit: int,
    seconds: Mapping[int, float] | None = None,
    *,
    waits_us: int = 0,
    decoupled: bool = False,
    cached: bool = False,
) -> str:
    """Such as "up to 8 together, waits 500 us for 4 or 8, 3 priorities, cached".

    `batch_limit` is how many items the scheduler joins, `seconds` the measured time by batch size, `waits_us`
    the delay if the configuration sets none, `cached` whether the server caches its responses.
    """
    return ", ".join(
        _parts(config, batch_limit, seconds or {}, waits_us=waits_us, decoupled=decoupled, cached=cached)
    )


def _parts(
    config: ModelConfig,
    batch_limit: int,
    seconds: Mapping[int, float],
    *,
    waits_us: int,
    decoupled: bool,
    cached: bool,
) -> Iterator[str]:
    if config.ensemble is not None:
        yield f"ensemble of {', '.join(dict.fromkeys(step.model for step in config.ensemble.steps))}"
    elif config.sequence is not None:
        yield _sequences(config.sequence, max(1, batch_limit))
    elif batch_limit <= 1:
        yield "one by one"
    else:
        yield f"up to {batch_limit} together"
        yield from _company(config, batch_limit, waits_us)
    if decoupled:
        yield "any number of responses"
    if config.objective_seconds is not None:
        yield _objective(config.objective_seconds, batch_limit, seconds)
    if config.priority_levels > 1:
        yield f"{config.priority_levels} priorities"
    yield from _limits(config.queue_policy)
    if config.preserve_ordering:
        yield "in order"
    if config.joining is not None:
        yield from _unlike(config.joining)
    if config.split_large_batches:
        yield "larger ones in parts"
    if cached:
        yield "cached"


def _company(config: ModelConfig, batch_limit: int, waits_us: int) -> Iterator[str]:
    """What a free instance waits for. Preferring the largest batch is not worth mentioning."""
    delay = config.max_queue_delay_us or waits_us
    sizes = (
        " or ".join(map(str, sorted(set(config.preferred_batch_sizes))))
        if config.preferred_batch_sizes != (batch_limit,)
        else ""
    )
    if delay:
        yield f"waits {format_seconds(delay / 1e6)}{f' for {sizes}' if sizes else ''}"
    else:
        yield f"preferably {sizes}" if sizes else "no delay"


def _sequences(batching: SequenceBatching, places: int) -> str:
    if batching.iterative:
        return f"iterative sequences, {places} together" if places > 1 else "iterative sequences"
    if batching.strategy == "direct":
        return f"sequences, direct, {places} an instance"
    return f"sequences, oldest, {batching.max_candidates or places} an instance"


def _objective(objective: float, batch_limit: int, seconds: Mapping[int, float]) -> str:
    text = f"within {format_seconds(objective)}"
    largest = max((size for size in seconds if size <= max(1, batch_limit)), default=0)
    return (
        f"{text} ({largest} take{'s' if largest == 1 else ''} {format_seconds(seconds[largest])})"
        if largest
        else text
    )


def _unlike(joining: Joining) -> Iterator[str]:
    if joining.allowed_batch_sizes:
        yield f"filled up to {' or '.join(map(str, joining.allowed_batch_sizes))}"
    if joining.padded:
        yield "padded"
    if joining.ragged:
        yield "ragged"


def _limits(policy: QueuePolicy) -> Iterator[str]:
    if policy.timeout_us:
        yield f"{'delayed' if policy.delay else 'refused'} after {format_seconds(policy.timeout_us / 1e6)}"
    if policy.max_size is not None:
        yield f"queue of {policy.max_size}"
