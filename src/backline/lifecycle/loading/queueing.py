"""What stands between the engine and the instances of a version: its queue, and whatever a configuration puts in front of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from backline.engine.model import Model
from backline.engine.model_config import ModelConfig, QueuePolicy
from backline.lifecycle.loading.loader import Loaded
from backline.schedule.batching import BatchPolicy
from backline.schedule.queues.queue import QueueSettings, QueueTotal
from backline.schedule.scheduler import Scheduler, Settings
from backline.schedule.turn import Turn
from backline.schedule.version_queue import InstancesQueue
from backline.workers.instance import Instance

# What a model must ask for is imported when one does (below).
if TYPE_CHECKING:
    from backline.schedule.cache.cache import ResponseCache
    from backline.schedule.sequences.batcher import SequenceBatcher
    from backline.schedule.sequences.lanes import Lane
    from backline.schedule.sequences.state_store import StateStore
    from backline.schedule.sequences.tensors import SequenceTensors

#: Requests that may wait for one model version, or in one of its priority levels, when its configuration does not say.
DEFAULT_QUEUE_SIZE = 1024
#: Requests of other lengths that are passed over in search of those that fit together, where lengths are padded.
REACH = 128


def build_queue(
    model: Model,
    loaded: Loaded,
    instances: Sequence[Instance],
    total: QueueTotal | None = None,
    *,
    turn: Turn | None = None,
    cache: ResponseCache | None = None,
    fingerprint: str = "",
) -> InstancesQueue:
    """The queue of a version that was loaded, from the innermost to what requests come to first.

    With a `cache` it stands behind that, if the model asks for it; `fingerprint` tells what was loaded.
    """
    config = model.config
    settings = settings_of(config, loaded)
    loop = asyncio.get_running_loop()
    scheduler = _scheduler(model, loaded, settings, instances, total, turn)
    queue: InstancesQueue = scheduler
    if config.split_large_batches:
        from backline.schedule.splitting import SplittingQueue

        queue = SplittingQueue(scheduler, loaded.max_batch_size, model.statistics)
    if cache is None or not config.response_cache:
        return queue
    from backline.schedule.cache.flight import RequestKeys
    from backline.schedule.cache.queue import CachedInstances

    keys = RequestKeys(model.name, model.version, fingerprint)
    return CachedInstances(
        queue,
        cache,
        keys,
        settings.queue,
        model.statistics,
        name=model.name,
        version=model.version,
        loop=loop,
    )


def _scheduler(
    model: Model,
    loaded: Loaded,
    settings: Settings,
    instances: Sequence[Instance],
    total: QueueTotal | None,
    turn: Turn | None,
) -> Scheduler:
    config = model.config
    loop = asyncio.get_running_loop()
    ordered = config.preserve_ordering
    if config.objective_seconds is None:
        return Scheduler(
            model.name,
            settings,
            instances,
            model.statistics,
            loop=loop,
            preserve_ordering=ordered,
            total=total,
            turn=turn,
        )
    from backline.schedule.objective.scheduler import ObjectiveScheduler

    times = loaded.measured.times
    return ObjectiveScheduler(
        model.name,
        settings,
        instances,
        model.statistics,
        objective=config.objective_seconds,
        seconds=times.seconds,
        size=0 if loaded.signature.is_fixed(batched=loaded.max_batch_size > 0) else times.elements,
        loop=loop,
        preserve_ordering=ordered,
        total=total,
        turn=turn,
    )


def build_sequence_queue(
    model: Model,
    loaded: Loaded,
    instances: Sequence[Instance],
    tensors: SequenceTensors,
    store: StateStore,
    total: QueueTotal | None = None,
) -> SequenceBatcher:
    """The queue of a version whose requests belong to sequences."""
    from backline.schedule.sequences.batcher import SequenceBatcher
    from backline.schedule.sequences.lanes import SequenceLane, SlotLane, SlotPolicy

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
            return SequenceLane(
                model.name,
                Settings(batches),
                [instance],
                model.statistics,
                loop=loop,
                preserve_ordering=order,
            )

    return SequenceBatcher(
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
        policy=_limited(config.queue_policy),
        loop=loop,
        total=total,
    )


def settings_of(config: ModelConfig, loaded: Loaded) -> Settings:
    """How the requests of a version are queued and joined."""
    return Settings(_batch_policy(config, loaded), queue_settings(config))


def queue_settings(config: ModelConfig) -> QueueSettings:
    """How the requests of a model are queued."""
    policies = {level: _limited(policy) for level, policy in config.priority_queue_policies.items()}
    return QueueSettings(
        _limited(config.queue_policy), config.priority_levels, config.default_priority_level, policies
    )


def _limited(policy: QueuePolicy) -> QueuePolicy:
    return policy if policy.max_size is not None else replace(policy, max_size=DEFAULT_QUEUE_SIZE)


def _batch_policy(config: ModelConfig, loaded: Loaded) -> BatchPolicy:
    if not loaded.max_batch_size:
        return BatchPolicy()
    preferred = config.preferred_batch_sizes
    padded = loaded.joining is not None and loaded.joining.padded
    mixed = padded and not config.preserve_ordering and config.objective_seconds is None
    largest = max(loaded.batch_limit, *preferred, 1)
    return BatchPolicy(
        largest,
        preferred,
        (config.max_queue_delay_us or loaded.max_queue_delay_us) * 1000,
        reach=REACH if mixed else 0,
    )
