"""The configuration of a model and its parts: the model's files, ensembles, policies for versions and queues,
and warm-up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Final, Literal

from msgspec import Struct, field

from backline.engine.config.instance_group import InstanceGroup
from backline.engine.config.joining import Joining
from backline.engine.config.sequence_batching import SequenceBatching
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape


class ModelFormat(Struct, frozen=True):
    """The files by which a backend recognises its models in a version's folder.

    `filenames` are complete names, in order of preference ("model.onnx"), possibly in a subfolder
    ("model.savedmodel/saved_model.pb"). If exactly one file in a folder has one of the `suffixes` (".onnx"),
    this file is recognised too. If `folder` is set, the model is not just the file, but the whole folder that
    contains it (as for saved_model.pb).
    """

    backend: str
    filenames: tuple[str, ...]
    suffixes: tuple[str, ...] = ()
    folder: bool = False


class Formats(tuple[ModelFormat, ...]):
    """The formats of the built-in backends, in order of preference.

    `further` returns those of the installed plug-ins, which are looked up only for files in no other format,
    and `problem` says why the installed backend with a name cannot be used; "" if there is none.
    """

    further: Callable[[], tuple[ModelFormat, ...]] = staticmethod(lambda: ())
    problem: Callable[[str], str] = staticmethod(lambda name: "")


class EnsembleStep(Struct, frozen=True):
    """A request from an ensemble to another model. `version` is a version or a label; "" means the default
    version.

    `inputs` maps each input of the model to a tensor of the ensemble; `outputs` does the same for each
    requested output.
    """

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Ensemble(Struct, frozen=True):
    """The steps of an ensemble, in the order of the configuration. A step runs as soon as its input tensors
    are available.

    `max_inflight` limits the number of requests in flight of each step that follows a decoupled step, for a
    single request to the ensemble; 0 means the server's default.
    """

    steps: tuple[EnsembleStep, ...]
    max_inflight: int = 0

    @property
    def models(self) -> frozenset[str]:
        """The names of the models that the steps call."""
        return frozenset(step.model for step in self.steps)


#: The lanes of models that run in the server's process.
Lane = Literal["inline", "thread"]
#: The lanes that a configuration may choose: the lanes above, and the lane of models in worker processes.
AnyLane = Literal[Lane, "process"]
#: The maximum number of versions that a policy may name.
MAX_SPECIFIC = 1000


#: The beginning of Triton's error message for a model without versions.
UNAVAILABLE_VERSIONS = "at least one version must be available under the version policy of model"


class VersionPolicy(Struct, frozen=True):
    """The policy for which versions of a model are served: the `latest` n versions, the versions in
    `specific`, or all versions if both are None.
    """

    latest: int | None = 1
    specific: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        """Raises InvalidArgument if the policy names too many versions. There is a limit because each version
        is looked up, and reported if it is missing.
        """
        if self.specific is not None and len(self.specific) > MAX_SPECIFIC:
            raise InvalidArgument(
                f"version_policy names {len(self.specific)} versions; at most {MAX_SPECIFIC} are allowed"
            )


class QueuePolicy(Struct, frozen=True):
    """The limits for how many requests may wait in the queue of a model, or of one priority level, and for
    how long.

    If `max_size` is None, the server determines the maximum number. `timeout_us` is in microseconds; 0 means
    no timeout. With `may_shorten`, a request may set a shorter timeout; if `timeout_us` is 0, a request may
    set any timeout, unless `timed` is False. A request that has waited for its timeout is refused. With
    `delay`, such a request instead stays in the queue until no other request of the same or a higher priority
    is waiting.
    """

    max_size: int | None = None
    timeout_us: int = 0
    may_shorten: bool = False
    delay: bool = False
    timed: bool = True

    def timeout(self, own: float | None) -> float | None:
        """Returns the number of seconds for which a request with the timeout `own` may wait in the queue;
        None for no limit.
        """
        if not self.timeout_us:
            return own if self.timed else None
        default = self.timeout_us / 1e6
        return min(default, own) if own is not None and self.may_shorten else default


class WarmUpInput(Struct, frozen=True):
    """An input of a warm-up sample. `shape` is without the batch dimension. `source` is "zero", "random" or
    the name of a file in warmup/.
    """

    name: str
    datatype: DataType
    shape: Shape
    source: str


class WarmUpSample(Struct, frozen=True):
    """A warm-up request that is run `count` times, with `batch_size` copies of its inputs (0 counts as 1). A
    model without a batch dimension gets the inputs themselves.
    """

    name: str
    batch_size: int
    count: int
    inputs: tuple[WarmUpInput, ...]


class ModelConfig(Struct, frozen=True):
    """The settings in a model's files. Unless stated otherwise, None means that the server determines the
    setting by inspecting and measuring the model.

    `inputs` and `outputs` are as in config.pbtxt: their shapes are without the batch dimension if
    `max_batch_size` is above 0. Both are empty if the file names no tensors. `max_queue_delay_us` is in
    microseconds. `source` is the file from which the configuration was read.
    """

    name: str
    backend: str = ""
    platform: str = ""
    max_batch_size: int | None = None
    #: The maximum batch size if the server proves that the model can be batched; None for the server's
    #: default. Not used if the maximum batch size is configured.
    proved_batch: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    version_policy: VersionPolicy = VersionPolicy()
    instance_count: int | None = None
    #: The number of instances on the CPU if the configuration does not set their number; 0 if the server
    #: decides.
    usual_instances: int = 0
    #: The groups of instances, each with its devices and the resources that a run of an instance takes; empty
    #: if the server decides.
    instance_groups: tuple[InstanceGroup, ...] = ()
    lane: AnyLane | None = None
    #: The number of threads for a run that starts while no other run is in progress; None if the server
    #: decides by measurement.
    lone_run_threads: int | None = None
    #: The cores to which the model's threads or processes are pinned; empty for all cores.
    cpus: tuple[int, ...] = ()
    dynamic_batching: bool | None = None
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    #: Whether responses are sent in the order in which requests left the queue, even with several instances.
    preserve_ordering: bool = False
    #: The number of priority levels, of which level 1 is the highest; 0 if all requests have the same
    #: priority.
    priority_levels: int = 0
    #: The priority of requests that set no priority, or a priority that is out of range.
    default_priority_level: int = 0
    queue_policy: QueuePolicy = QueuePolicy()
    #: Queue policies by priority level. They override `queue_policy`.
    priority_queue_policies: Mapping[int, QueuePolicy] = field(default_factory=lambda: MappingProxyType({}))
    #: The rules for joining requests of different shapes, and for the sizes that batches may have; None if
    #: there are no such rules.
    joining: Joining | None = None
    #: Whether a request with more than `max_batch_size` items is run in parts; otherwise such a request is
    #: refused.
    split_large_batches: bool = False
    #: The latency objective in seconds, None for no objective. Requests that would miss the objective are
    #: refused immediately.
    objective_seconds: float | None = None
    #: The deadline, in seconds after the arrival, for requests that set no deadline or a later deadline; None
    #: for no deadline.
    default_deadline_seconds: float | None = None
    #: The rules for batching sequences; None if the model has no sequences.
    sequence: SequenceBatching | None = None
    #: The batch dimension of each tensor whose batch dimension is not the first dimension.
    batch_axes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))
    #: Inputs that clients do not send because their values never change. Maps the name of each input to its
    #: value, as text.
    constant_inputs: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    default_model_filename: str = ""
    #: The steps of an ensemble, which has no model file; None for other models.
    ensemble: Ensemble | None = None
    #: Whether a request may get any number of responses (Triton's model_transaction_policy).
    decoupled: bool = False
    #: Whether the server may cache the model's responses.
    response_cache: bool = False
    parameters: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Additional labels for the model's metrics. In the metrics, the name of each label has the prefix `_`.
    metric_tags: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: The upper bounds, in milliseconds, of the buckets of the histogram for the time to the first response;
    #: empty for Triton's bounds.
    first_response_bounds_ms: tuple[float, ...] = ()
    #: The labels in the model's files, and the versions that they point to. Labels that are set by a request
    #: take precedence.
    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    #: Whether the model must not be unloaded to make room for other models.
    pinned: bool = False
    #: Whether the model is loaded only when its first request arrives.
    on_demand: bool = False
    #: After this many seconds without a request, a version is unloaded until its next request. None if idle
    #: versions stay loaded.
    idle_unload_seconds: float | None = None
    #: The time limit for a run in seconds; None if the configuration sets no limit, in which case a model's
    #: code may set one.
    execution_timeout_seconds: float | None = None
    #: Whether a request may be run twice; None if the configuration does not say. If a batch fails or the
    #: worker process ends, requests are retried unless this is False. If a run exceeds the time limit,
    #: requests are retried only if this is True.
    idempotent: bool | None = None
    #: The maximum resident memory of a worker process, in bytes; None if the configuration sets no limit, in
    #: which case a model's code may set one.
    memory_limit_bytes: int | None = None
    #: The Python version that a model in a worker process needs ("3.13"); empty for any version.
    python: str = ""
    #: The resources that a replica in Ray needs for the model: bytes of memory, and numbers of CPUs and GPUs.
    ray_actor_options: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    #: The number of times that a failed load is retried; None for the server's setting.
    load_retries: int | None = None
    warm_up: tuple[WarmUpSample, ...] = ()
    #: The serialised inference.ModelConfig of the whole configuration file, including fields that have no
    #: effect; empty if there is no file.
    declared: bytes = b""
    source: str = ""
    #: The line and column, in `source`, of each field that the file sets, by the path of the field; None if
    #: unknown. These positions are ignored when configurations are compared.
    places: Mapping[str, tuple[int, int] | None] = field(default_factory=lambda: MappingProxyType({}))
    warnings: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        if type(other) is not ModelConfig:
            return NotImplemented
        return bool(_compared(self) == _compared(other))

    __hash__ = None  # type: ignore[assignment]


_compared: Final = attrgetter(*(name for name in ModelConfig.__struct_fields__ if name != "places"))
