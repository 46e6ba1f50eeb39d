"""Builds the queue of a version from its configuration, and describes the scheduling for users."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from backline.engine.config.model_config import ModelConfig, QueuePolicy
from backline.engine.model import Model
from backline.lifecycle.loading.loaded import LoadedVersion
from backline.lifecycle.loading.run_time import format_seconds
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings, QueueTotal
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.turn import Turn
from backline.schedule.version_queue import InstancesQueue
from backline.workers.instance import Instance

if TYPE_CHECKING:
    from backline.engine.config.joining import Joining
    from backline.engine.config.sequence_batching import SequenceBatching
    from backline.lifecycle.options import LifecycleOptions
    from backline.schedule.cache.cache import ResponseCache
    from backline.schedule.sequences.batcher import SequenceBatcher
    from backline.schedule.sequences.lanes import Lane
    from backline.schedule.sequences.state_store import StateStore
    from backline.schedule.sequences.tensors import SequenceTensors

#: The largest queue of a version, or of one of its priority levels, whose configuration sets no size.
DEFAULT_QUEUE_SIZE = 1024
#: Such a queue holds as many requests as the version can run in this many seconds, but at least
#: SMALLEST_QUEUE, so that a program can send as many requests at once to a slow model.
QUEUE_SECONDS = 1.0
SMALLEST_QUEUE = 100
#: The maximum number of queued requests that are skipped, because their lengths differ too much, to find more
#: requests for a padded batch.
REACH = 128


def build_queue(
    model: Model,
    loaded: LoadedVersion,
    instances: Sequence[Instance],
    total: QueueTotal | None = None,
    *,
    turn: Turn | None = None,
    cache: ResponseCache | None = None,
    fingerprint: str = "",
    options: LifecycleOptions,
) -> InstancesQueue:
    """Builds the queue of a loaded version: a scheduler, with splitting and a response cache if configured.

    If the model uses the `cache`, its responses are stored under `fingerprint`, which identifies the loaded
    files.
    """
    config = model.config
    settings = settings_of(config, loaded, options)
    loop = asyncio.get_running_loop()
    scheduler = _scheduler(model, loaded, settings, instances, total, turn, options.hold_requests)
    queue: InstancesQueue = scheduler
    if config.split_large_batches:
        from backline.schedule.splitting import SplittingQueue

        queue = SplittingQueue(scheduler, loaded.max_batch_size, model.statistics)
    if cache is None or not config.response_cache:
        return queue
    from backline.schedule.cache.flight import RequestKeys
    from backline.schedule.cache.queue import CachedInstances

    keys = RequestKeys(model.name, model.version, fingerprint)
    name, version, statistics = model.name, model.version, model.statistics
    statistics.cached = True
    return CachedInstances(
        queue, cache, keys, settings.queue, statistics, name=name, version=version, loop=loop
    )


def _scheduler(
    model: Model,
    loaded: LoadedVersion,
    settings: Settings,
    instances: Sequence[Instance],
    total: QueueTotal | None,
    turn: Turn | None,
    hold: int,
) -> Scheduler:
    config = model.config
    served = (model.name, settings, instances, model.statistics)
    common: dict[str, Any] = {
        "loop": asyncio.get_running_loop(),
        "preserve_ordering": config.preserve_ordering,
        "total": total,
        "turn": turn,
    }
    # As in Triton, the hook concerns only models that batch. Without max_batch_size, the server decides that.
    decided = config.dynamic_batching is None and config.max_batch_size is None and loaded.batch_limit > 1
    if hold and (config.dynamic_batching or decided):
        from backline.schedule.holding import HoldingScheduler

        return HoldingScheduler(*served, **common, hold=hold)
    if config.objective_seconds is None:
        return Scheduler(*served, **common)
    from backline.schedule.objective.scheduler import ObjectiveScheduler

    times = loaded.measured.times
    return ObjectiveScheduler(
        *served,
        **common,
        objective=config.objective_seconds,
        seconds=times.seconds,
        size=0 if loaded.signature.is_fixed(batched=loaded.max_batch_size > 0) else times.elements,
    )


def build_sequence_queue(
    model: Model,
    loaded: LoadedVersion,
    instances: Sequence[Instance],
    tensors: SequenceTensors,
    store: StateStore,
    total: QueueTotal | None = None,
    *,
    options: LifecycleOptions,
) -> SequenceBatcher:
    """Returns the queue of a version that serves sequences."""
    from backline.schedule.sequences.batcher import SequenceBatcher
    from backline.schedule.sequences.lanes import UNTIMED, SequenceLane, SlotLane, SlotPolicy

    config = model.config
    batching = config.sequence
    assert batching is not None, "it is a model of sequences"
    loop = asyncio.get_running_loop()
    places = max(1, loaded.max_batch_size)
    if batching.strategy == "direct":
        slots = places
        policy = SlotPolicy(slots, batching.minimum_slot_utilization, batching.max_queue_delay_us * 1000)

        def make_lane(instance: Instance) -> Lane:
            return SlotLane(model.name, policy, instance, model.statistics, tensors.empty, loop=loop)
    else:
        slots = batching.max_candidates or places
        batches = BatchPolicy(places, batching.preferred_batch_sizes, batching.max_queue_delay_us * 1000)
        order = batching.preserve_ordering

        def make_lane(instance: Instance) -> Lane:
            settings, statistics = Settings(batches, QueueSettings(UNTIMED)), model.statistics
            return SequenceLane(
                model.name, settings, [instance], statistics, loop=loop, preserve_ordering=order
            )

    kind: Callable[..., SequenceBatcher] = SequenceBatcher
    if options.hold_requests:
        from backline.schedule.holding import HoldingSequenceBatcher

        kind = partial(HoldingSequenceBatcher, hold=options.hold_requests, backlog=options.hold_backlog)
    return kind(
        model.name,
        model.version,
        tensors,
        model.statistics,
        instances,
        make_lane,
        slots=slots,
        batched=loaded.max_batch_size > 0,
        idle_seconds=batching.idle_us / 1e6,
        store=store,
        policy=_limited(config.queue_policy, default_queue_size(loaded, options)),
        loop=loop,
        total=total,
        advice=options.unknown_sequence_advice,
    )


def settings_of(config: ModelConfig, loaded: LoadedVersion, options: LifecycleOptions) -> Settings:
    """Returns the settings of a version's queue, and those by which its batches are formed."""
    return Settings(
        _batch_policy(config, loaded), queue_settings(config, options, default_queue_size(loaded, options))
    )


def queue_settings(
    config: ModelConfig, options: LifecycleOptions, size: int | None = DEFAULT_QUEUE_SIZE
) -> QueueSettings:
    """Returns the settings of a model's queue: limits and timeouts by priority. `size` is the number of
    requests per level that may wait if the configuration sets none; None for any number.
    """
    if options.default_queue == "any":
        size = None
    policies = {level: _limited(policy, size) for level, policy in config.priority_queue_policies.items()}
    return QueueSettings(
        _limited(config.queue_policy, size),
        config.priority_levels,
        config.default_priority_level,
        policies,
        options.fair_queues,
    )


def default_queue_size(loaded: LoadedVersion, options: LifecycleOptions) -> int | None:
    """Returns how many requests may queue for a version whose configuration does not say; None for any
    number. See DefaultQueue.
    """
    if options.default_queue == "any":
        return None
    times = loaded.measured.times.seconds
    if options.default_queue == "requests" or not times:
        return DEFAULT_QUEUE_SIZE
    largest = max(1, loaded.batch_limit)
    seconds_per_item = min(seconds / size for size, seconds in times.items() if size <= largest)
    runs_in_time = QUEUE_SECONDS * loaded.instances / max(seconds_per_item, 1e-9)
    return min(DEFAULT_QUEUE_SIZE, max(SMALLEST_QUEUE, round(runs_in_time)))


def _limited(policy: QueuePolicy, size: int | None) -> QueuePolicy:
    return policy if policy.max_size is not None else replace(policy, max_size=size)


def _batch_policy(config: ModelConfig, loaded: LoadedVersion) -> BatchPolicy:
    if not loaded.max_batch_size:
        return BatchPolicy()
    preferred = config.preferred_batch_sizes
    padded = loaded.joining is not None and loaded.joining.padded
    mixed = padded and not config.preserve_ordering and config.objective_seconds is None
    largest = max(loaded.batch_limit, *preferred, 1)
    delay_us = config.max_queue_delay_us or loaded.max_queue_delay_us
    return BatchPolicy(largest, preferred, delay_us * 1000, reach=REACH if mixed else 0)


def scheduling_text(
    config: ModelConfig,
    batch_limit: int,
    seconds: Mapping[int, float] | None = None,
    *,
    waits_us: int = 0,
    decoupled: bool = False,
    cached: bool = False,
    lone_threads: int = 1,
    queue_size: int | None = DEFAULT_QUEUE_SIZE,
) -> str:
    """Describes a model's scheduling, for example "up to 8 together, waits 500 us for 4 or 8, 3 priorities".

    `batch_limit` is the maximum batch size, `seconds` the measured run time by batch size, `waits_us` the
    queue delay if the configuration sets none, `cached` whether responses are cached, `lone_threads` the
    number of threads of a run while no other run is in progress, and `queue_size` the number of requests that
    may queue if the configuration does not say.
    """
    seconds = seconds or {}
    parts: list[str] = []
    if config.ensemble is not None:
        parts.append(f"ensemble of {', '.join(dict.fromkeys(step.model for step in config.ensemble.steps))}")
    elif config.sequence is not None:
        parts.append(_sequences(config.sequence, max(1, batch_limit)))
    elif batch_limit <= 1:
        parts.append("one by one")
    else:
        parts += [f"up to {batch_limit} together", _company(config, batch_limit, waits_us)]
    if decoupled:
        parts.append("any number of responses")
    if config.objective_seconds is not None:
        parts.append(_objective(config.objective_seconds, batch_limit, seconds))
    if config.priority_levels > 1:
        parts.append(f"{config.priority_levels} priorities")
    parts += _limits(config.queue_policy, queue_size)
    if config.preserve_ordering:
        parts.append("in order")
    if config.joining is not None:
        parts += _unlike(config.joining)
    if config.split_large_batches:
        parts.append("larger ones in parts")
    if cached:
        parts.append("cached")
    if lone_threads > 1:
        parts.append(f"alone on {lone_threads} cores")
    return ", ".join(parts)


def _company(config: ModelConfig, batch_limit: int, waits_us: int) -> str:
    """Describes how long a free instance waits for more requests, and which batch sizes it prefers."""
    delay = config.max_queue_delay_us or waits_us
    preferred = sorted(set(config.preferred_batch_sizes))
    sizes = "" if preferred == [batch_limit] else " or ".join(map(str, preferred))
    if delay:
        return f"waits {format_seconds(delay / 1e6)}{f' for {sizes}' if sizes else ''}"
    return f"preferably {sizes}" if sizes else "no delay"


def _sequences(batching: SequenceBatching, places: int) -> str:
    if batching.iterative:
        return f"iterative sequences, {places} together" if places > 1 else "iterative sequences"
    if batching.strategy == "direct":
        return f"sequences, direct, {places} an instance"
    return f"sequences, oldest, {batching.max_candidates or places} an instance"


def _objective(objective: float, batch_limit: int, seconds: Mapping[int, float]) -> str:
    text = f"within {format_seconds(objective)}"
    largest = max((size for size in seconds if size <= max(1, batch_limit)), default=0)
    if not largest:
        return text
    return f"{text} ({largest} take{'s' if largest == 1 else ''} {format_seconds(seconds[largest])})"


def _unlike(joining: Joining) -> Iterator[str]:
    if joining.allowed_batch_sizes:
        yield f"filled up to {' or '.join(map(str, joining.allowed_batch_sizes))}"
    if joining.padded:
        yield "padded"
    if joining.ragged:
        yield "ragged"


def _limits(policy: QueuePolicy, size: int | None) -> Iterator[str]:
    if policy.timeout_us:
        yield f"{'delayed' if policy.delay else 'refused'} after {format_seconds(policy.timeout_us / 1e6)}"
    if policy.max_size is not None:
        yield f"queue of {policy.max_size}"
    elif size is not None and size < DEFAULT_QUEUE_SIZE:
        yield f"queue of {size}"
