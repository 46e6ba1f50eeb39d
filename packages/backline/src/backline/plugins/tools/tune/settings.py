"""Defines the settings that `backline tune` varies, lists their combinations, and puts them into
configurations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from math import ceil
from typing import Any, TypeAlias

import numpy as np

from backline.engine.config.model_config import AnyLane
from backline.repository.configuration.native import parameter
from backline_client.protos import message

#: The maximum batch size that is tried.
LARGEST_BATCH = 64
#: The numbers of padding buckets that are tried.
BUCKET_COUNTS = (2, 4, 8)
#: The name of each padded input, with the lengths to which this input is padded.
Buckets: TypeAlias = tuple[tuple[str, tuple[int, ...]], ...]
#: The queue delays that are tried, in microseconds.
DELAYS_US = (0, 500, 2000)


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """The parameters of a backend that set the options to try. A name is empty if the backend lacks the
    option.
    """

    threads: str = ""
    optimization: str = ""
    arena: str = ""


#: The runtime options of each backend that has such options.
RUNTIME_OPTIONS = {
    "onnxruntime": RuntimeOptions("intra_op_thread_count", "graph_optimization_level", "enable_mem_arena"),
    "pytorch": RuntimeOptions("INTRA_OP_THREAD_COUNT"),
}


@dataclass(frozen=True, slots=True)
class TunedSettings:
    """One combination of settings. `batch` is max_batch_size; 0 for a model that is not batched."""

    lane: AnyLane = "thread"
    instances: int = 1
    batch: int = 0
    delay_us: int = 0
    #: The number of threads of each run.
    threads: int = 1
    #: The level of graph optimisation.
    optimization: str = "all"
    #: Whether the runtime keeps memory between runs.
    arena: bool = True
    #: The padding buckets. If empty, the buckets in the configuration remain.
    buckets: Buckets = ()

    def changes(self, base: TunedSettings) -> list[tuple[str, Any, Any]]:
        """Returns the settings that differ from `base`: the name, the value in `base`, and the new value."""
        return [
            (field.name, before, after)
            for field in fields(self)
            if (before := getattr(base, field.name)) != (after := getattr(self, field.name))
        ]

    def __str__(self) -> str:
        parts = [f"{self.lane} x{self.instances}"]
        if self.batch:
            parts.append(f"batch {self.batch}")
        if self.delay_us:
            parts.append(f"delay {self.delay_us} us")
        if self.threads != 1:
            parts.append(f"{self.threads} threads")
        if self.optimization != "all":
            parts.append(f"optimization {self.optimization}")
        if not self.arena:
            parts.append("no arena")
        parts += [f"{name} padded to {'/'.join(map(str, lengths))}" for name, lengths in self.buckets]
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Tunable:
    """The limits within which the settings of a model may be varied. `base` contains the settings that the
    server uses by default.
    """

    base: TunedSettings
    #: The maximum number of items in a batch; 0 if the model cannot be batched.
    largest_batch: int = 0
    options: RuntimeOptions = RuntimeOptions()
    #: Whether the instances run in worker processes.
    hosted: bool = False
    #: Whether the configuration or the model itself places the instances on devices. If so, the lane and
    #: the numbers of instances and threads are not varied.
    placed: bool = False
    #: Whether the server found runs short enough to take place on the event loop.
    inline: bool = False
    #: The choices of padding buckets to try, in addition to the buckets in the configuration.
    buckets: tuple[Buckets, ...] = ()


def space(tunable: Tunable, cores: int) -> list[TunedSettings]:
    """Returns all combinations to consider. Leaves out those that use more threads in this process than there
    are cores, except `base`.
    """
    return list(dict.fromkeys([tunable.base, *_combinations(tunable, cores)]))


def _combinations(tunable: Tunable, cores: int) -> Iterator[TunedSettings]:
    options = tunable.options
    batches = _powers(min(tunable.largest_batch, LARGEST_BATCH)) if tunable.largest_batch else [0]
    levels = ("all", "extended") if options.optimization else ("all",)
    arenas = (True, False) if options.arena else (True,)
    for lane, instances, threads in _placements(tunable, cores):
        for batch, level, arena in product(batches, levels, arenas):
            for delay in DELAYS_US if batch > 1 else (0,):
                yield TunedSettings(lane, instances, batch, delay, threads, level, arena)


def _placements(tunable: Tunable, cores: int) -> Iterator[tuple[AnyLane, int, int]]:
    """Yields combinations of a lane, a number of instances, and a number of threads of each run."""
    threads = _powers(cores) if tunable.options.threads else [1]
    if tunable.placed:
        yield tunable.base.lane, tunable.base.instances, tunable.base.threads
        return
    if tunable.hosted:
        # Code in worker processes often waits for something, so more workers than cores may be faster.
        for instances in _powers(2 * cores):
            yield "process", instances, 1
        return
    if tunable.inline:
        yield "inline", 1, 1
    for instances, each in product(_powers(cores), threads):
        if instances * each <= cores:
            yield "thread", instances, each


def _powers(most: int) -> list[int]:
    """Returns the powers of two that are below `most`, and `most` itself."""
    found = [1]
    while found[-1] * 2 < most:
        found.append(found[-1] * 2)
    return found if most <= 1 else [*found, most]


def configured(declared: Any, settings: TunedSettings, tunable: Tunable) -> Any:
    """Returns a copy of the configuration `declared`, an inference.ModelConfig, with these settings.

    Values that the server would choose by itself are included, so that measurements at later loads cannot
    change them. Runtime options are included only if they differ from the defaults of the runtime.
    """
    config = message("inference.ModelConfig").FromString(declared.SerializeToString())
    if settings.batch:
        config.max_batch_size = settings.batch
        config.dynamic_batching.max_queue_delay_microseconds = settings.delay_us
    if not tunable.placed:
        kept = config.instance_group[0] if config.instance_group else None
        group = message("inference.ModelInstanceGroup")()
        if kept is not None:
            group.CopyFrom(kept)
        group.count = settings.instances
        del config.instance_group[:]
        config.instance_group.append(group)
    _set(config, parameter("lane"), settings.lane, "")
    options, defaults = tunable.options, TunedSettings()
    _set(config, options.threads, str(settings.threads), str(defaults.threads))
    _set(config, options.optimization, settings.optimization, defaults.optimization)
    _set(config, options.arena, str(int(settings.arena)), str(int(defaults.arena)))
    for name, lengths in settings.buckets:
        _set(config, parameter(f"padding.{name}.buckets"), ",".join(map(str, lengths)), "")
    return config


def bucket_choices(
    lengths: Mapping[str, Sequence[int]], now: Mapping[str, tuple[int, ...]]
) -> tuple[Buckets, ...]:
    """Returns choices of buckets for inputs of these lengths. The buckets of a choice divide the requests
    into equal parts.

    `now` contains the buckets in the configuration, by input. If all lengths are equal, returns no choices.
    """
    choices: list[Buckets] = []
    for count in BUCKET_COUNTS:
        shares = [part / count for part in range(1, count + 1)]
        chosen = tuple(
            (name, tuple(sorted({ceil(length) for length in np.quantile(found, shares, method="higher")})))
            for name, found in sorted(lengths.items())
            if len(set(found)) > 1
        )
        if chosen and chosen not in choices and any(now.get(name) != one for name, one in chosen):
            choices.append(chosen)
    return tuple(choices)


def _set(config: Any, key: str, value: str, default: str) -> None:
    if key and (value != default or key in config.parameters):
        config.parameters[key].string_value = value


def without(settings: TunedSettings, base: TunedSettings, name: str) -> TunedSettings:
    """Returns `settings` with the setting `name` changed back to its value in `base`."""
    return replace(settings, **{name: getattr(base, name)})
