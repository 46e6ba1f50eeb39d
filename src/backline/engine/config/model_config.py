"""The configuration of one model, with its parts: files, ensemble, version and queue policies, warm-up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.joining import Joining
from backline.engine.config.sequence_batching import SequenceBatching
from backline.engine.errors import InvalidArgument
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import TensorSpec
from backline.engine.values.tensor import Shape


@dataclass(frozen=True, slots=True)
class ModelFormat:
    """The files by which a backend recognises its models in a version's folder.

    `filenames` are complete names, in order of preference ("model.onnx"), possibly in a subfolder
    ("model.savedmodel/saved_model.pb"). `suffixes` recognise the only candidate in a folder (".onnx"). With
    `folder`, the model is the whole folder that contains the file (as for saved_model.pb), not just the file.
    """

    backend: str
    filenames: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    folder: bool = False


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One request to another model. `version` is a version or a label, "" for the default.

    `inputs` maps each input of the model to a tensor of the ensemble, and `outputs` each requested output.
    """

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The steps, in configuration order. A step runs once its input tensors are available.

    For one request to the ensemble, each step that follows a decoupled step has at most `max_inflight`
    requests in flight; 0 means the server's default.
    """

    steps: tuple[EnsembleStep, ...]
    max_inflight: int = 0

    @property
    def models(self) -> frozenset[str]:
        """The names of the models that the steps call."""
        return frozenset(step.model for step in self.steps)


#: The lanes that a configuration may choose.
Lane = Literal["inline", "thread"]
#: All lanes: the above, and the lane of models in worker processes.
AnyLane = Literal[Lane, "process"]
#: The maximum number of versions that a policy may name.
MAX_SPECIFIC = 1000


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions of a model are served: the `latest` n, those in `specific`, or all (both None)."""

    latest: int | None = 1
    specific: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument for too many versions: each is looked up, and reported if missing."""
        if self.specific is not None and len(self.specific) > MAX_SPECIFIC:
            raise InvalidArgument(
                f"version_policy names {len(self.specific)} versions, at most {MAX_SPECIFIC} are possible"
            )


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """How many requests may queue and for how long, for a model or one priority level.

    If `max_size` is None, the server decides. `timeout_us` is in microseconds, 0 for none. With `may_shorten`
    a request may set a shorter timeout; without `timeout_us` it may set any, unless `timed` is False. An
    expired request is refused or, with `delay`, waits until no other request of its level or a higher one is
    left.
    """

    max_size: int | None = None
    timeout_us: int = 0
    may_shorten: bool = False
    delay: bool = False
    timed: bool = True

    def timeout(self, own: float | None) -> float | None:
        """Returns how many seconds a request with timeout `own` may queue; None for no limit."""
        if not self.timeout_us:
            return own if self.timed else None
        default = self.timeout_us / 1e6
        return min(default, own) if own is not None and self.may_shorten else default


@dataclass(frozen=True, slots=True)
class WarmUpInput:
    """An input of a warm-up sample, of unbatched `shape`. `source`: "zero", "random" or a file in warmup/."""

    name: str
    datatype: DataType
    shape: Shape
    source: str


@dataclass(frozen=True, slots=True)
class WarmUpSample:
    """A warm-up request to run `count` times, with `batch_size` copies of its inputs (0: unbatched)."""

    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmUpInput, ...]


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The settings in a model's files; None where the server decides by inspecting and measuring the model.

    `inputs` and `outputs` are as in config.pbtxt, without the batch dimension if `max_batch_size` is above 0.
    Both are empty if the file names no tensors. `max_queue_delay_us` is in microseconds. `source` is the file
    that the configuration was read from.
    """

    name: str
    backend: str = ""
    platform: str = ""
    max_batch_size: int | None = None
    #: The maximum batch size if batching is proved rather than configured; None for the server's default.
    proved_batch: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    instance_count: int | None = None
    #: The number of instances on the CPU if the configuration does not set it; 0 if the server decides.
    usual_instances: int = 0
    #: Where instances run and which resources they take, by group; empty if the server decides.
    instance_groups: tuple[InstanceGroup, ...] = ()
    lane: AnyLane | None = None
    #: The cores that the model's threads or processes are pinned to; empty for all.
    cpus: tuple[int, ...] = ()
    dynamic_batching: bool | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    #: Whether responses are sent in the order in which requests left the queue, even with several instances.
    preserve_ordering: bool = False
    #: The number of priority levels, of which 1 is the highest; 0 if all requests are equal.
    priority_levels: int = 0
    #: The priority of requests that set none, or one that is out of range.
    default_priority_level: int = 0
    queue_policy: QueuePolicy = QueuePolicy()
    #: Queue policies by priority level, which override `queue_policy`.
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    #: How requests of different shapes are joined, and which sizes batches must have; None without such
    #: rules.
    joining: Joining | None = None
    #: Whether a request above `max_batch_size` is run in parts; otherwise it is refused.
    split_large_batches: bool = False
    #: The latency objective in seconds; requests that would miss it are refused at once.
    objective_seconds: float | None = None
    #: The deadline, in seconds, of requests that set none or a later one.
    default_deadline_seconds: float | None = None
    #: How sequences are batched; None if the model has no sequences.
    sequence: SequenceBatching | None = None
    #: The batch dimension by tensor, where it is not the first.
    batch_axes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    #: Inputs whose values never change and that clients do not send, by name: the values as text.
    constant_inputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_model_filename: str = ""
    #: The steps of an ensemble, which has no model file; None for other models.
    ensemble: Ensemble | None = None
    #: Whether a request may get any number of responses (Triton's model_transaction_policy).
    decoupled: bool = False
    #: Whether responses may come from the server's cache.
    response_cache: bool = False
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Additional labels of the model's metrics, where each name gets the prefix `_`.
    metric_tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: The upper bounds, in milliseconds, of the histogram of the time to first response; empty for Triton's
    #: bounds.
    first_response_bounds_ms: tuple[float, ...] = ()
    #: The labels in the model's files, and their versions; labels set by request override them.
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Whether the model is never unloaded to make room for others.
    pinned: bool = False
    #: Whether the model is loaded only when its first request arrives.
    on_demand: bool = False
    #: After how many idle seconds a version is unloaded until the next request; None for never.
    idle_unload_seconds: float | None = None
    #: The time limit of a run in seconds; None if the model decides.
    execution_timeout_seconds: float | None = None
    #: Whether a request may run twice. Requests are retried when their worker ends, unless this is False, and
    #: when a run exceeds the time limit only if it is True.
    idempotent: bool | None = None
    #: The maximum resident memory of a worker, in bytes; None if the model decides.
    memory_limit_bytes: int | None = None
    #: The Python version that a model in a worker needs ("3.13"); empty for any.
    python: str = ""
    #: How many times a failed load is retried.
    load_retries: int | None = None
    warm_up: tuple[WarmUpSample, ...] = ()
    #: The serialised inference.ModelConfig of the whole configuration file, including fields that have no
    #: effect; empty if there is no file.
    declared: bytes = b""
    source: str = ""
    #: The line and column in `source` of each field that it sets, by the field's path; None if unknown.
    #: Positions do not count when configurations are compared.
    places: Mapping[str, tuple[int, int] | None] = field(
        default_factory=lambda: MappingProxyType({}), compare=False
    )
    warnings: tuple[str, ...] = ()
