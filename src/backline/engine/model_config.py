"""The configuration of one model, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from backline.engine.datatypes import DataType
from backline.engine.ensemble import Ensemble
from backline.engine.instance_group import InstanceGroup
from backline.engine.joining import Joining
from backline.engine.sequence_batching import SequenceBatching
from backline.engine.signature import TensorSpec
from backline.engine.tensor import Shape

#: What a configuration may choose from.
Lane = Literal["inline", "thread"]
#: Beside these what models in worker processes have.
AnyLane = Literal[Lane, "process"]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions of a model are served: the `latest` n, or those of `specific`, or all (both None)."""

    latest: int | None = 1
    specific: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How many requests may queue and for how long: a model's, or those of one priority level.

    `max_size` None is the server's choice. `timeout_us` is in microseconds, 0 for none. A request's own timeout is its limit where it is
    the shorter one and `may_shorten`, which is also so where there is no `timeout_us`. A request whose timeout passes is refused, or with
    `delay` waits on until no other of its level or a higher one is left.
    """

    max_size: int | None = None
    timeout_us: int = 0
    may_shorten: bool = False
    delay: bool = False

    def timeout(self, own: float | None) -> float | None:
        """The seconds that a request may queue which asks for `own`; None for any time."""
        if not self.timeout_us:
            return own
        default = self.timeout_us / 1e6
        return min(default, own) if own is not None and self.may_shorten else default


@dataclass(frozen=True, slots=True)
class WarmUpInput:
    """An input of a warm-up sample: `shape` without the batch dimension. `source` is "zero", "random", or a file's name below warmup/."""

    name: str
    datatype: DataType
    shape: Shape
    source: str


@dataclass(frozen=True, slots=True)
class WarmUpSample:
    """A request that is run `count` times before a version is ready, with `batch_size` copies of its inputs (0: without a batch)."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmUpInput, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What a model's files ask for; None is what the server decides by inspecting and measuring the model.

    `inputs` and `outputs` are as in config.pbtxt, without the batch dimension where `max_batch_size` is above 0; empty when the file does
    not name them. `max_queue_delay_us` is in microseconds. `source` is the file it was read from.
    """

    name: str
    backend: str = ""
    platform: str = ""
    max_batch_size: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    instance_count: int | None = None
    #: Where the instances of `instance_count` run and what they take, group by group; empty where the server decides how many there are.
    instance_groups: tuple[InstanceGroup, ...] = ()
    lane: AnyLane | None = None
    #: The cores that its threads or worker processes are kept to; empty for all.
    cpus: tuple[int, ...] = ()
    dynamic_batching: bool | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    #: Answers leave in the order in which requests were taken from the queue, also with several instances.
    preserve_ordering: bool = False
    #: Levels 1 (the highest) to this one; 0 where all requests are equal.
    priority_levels: int = 0
    #: The level of requests without one, or with one that there is not.
    default_priority_level: int = 0
    queue_policy: QueuePolicy = QueuePolicy()
    #: By level, instead of `queue_policy`.
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    #: Of a model whose requests may be joined although their shapes differ, or whose batches have sizes of their own.
    joining: Joining | None = None
    #: Whether a request of more than `max_batch_size` items is run in several parts; otherwise it is refused.
    split_large_batches: bool = False
    #: Seconds from the arrival of a request to its answer that are to be kept, by refusing at once what cannot be answered in time.
    objective_seconds: float | None = None
    #: Seconds to the deadline of requests that bring none, or a later one.
    default_deadline_seconds: float | None = None
    #: Of a model whose requests belong to sequences.
    sequence: SequenceBatching | None = None
    #: The dimension that is the batch, by tensor, where it is not the first.
    batch_axes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    #: Inputs of the model file that are always the same and that no client sends: their value as text.
    constant_inputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_model_filename: str = ""
    #: Of a model that consists of others; it has no file.
    ensemble: Ensemble | None = None
    #: Whether the model gives any number of responses to a request (Triton's model_transaction_policy).
    decoupled: bool = False
    #: Whether requests may be answered with what identical ones were, where the server keeps that.
    response_cache: bool = False
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Further labels of the model's metrics, where each has a `_` before its name.
    metric_tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: The upper bounds, in milliseconds, of the histogram of the time to the first of any number of responses; empty for Triton's.
    first_response_bounds_ms: tuple[float, ...] = ()
    #: Labels that the files give, and the versions they point to; those set by request go before them.
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Never unloaded to make room.
    pinned: bool = False
    #: Registered at start, loaded when the first request comes.
    on_demand: bool = False
    #: Seconds without a request after which a version is unloaded until the next one comes; None for never.
    idle_unload_seconds: float | None = None
    #: Seconds that a batch may take; whether requests are run again when their worker ends or their run took too long; and the resident
    #: memory of a worker at most; None is what the model says of itself.
    execution_timeout_seconds: float | None = None
    idempotent: bool | None = None
    memory_limit_bytes: int | None = None
    #: Of models in worker processes: the version of Python that they run on ("3.13"); empty where it does not matter.
    python: str = ""
    #: Further attempts after a failed load.
    load_retries: int | None = None
    warm_up: tuple[WarmUpSample, ...] = ()
    #: The serialised inference.ModelConfig of the file, complete, also with the fields that have no effect here; empty without a file.
    declared: bytes = b""
    source: str = ""
    warnings: tuple[str, ...] = ()
