"""Checks a document and converts it to the frozen ModelConfig that the server works with."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from msgspec.structs import replace

from backline.engine.config.instance_group import MAX_INSTANCES, InstanceGroup, Resource
from backline.engine.config.joining import SHAPES_OF, BatchInput, Cut, Joining, Padding
from backline.engine.config.model_config import (
    UNAVAILABLE_VERSIONS,
    Ensemble,
    EnsembleStep,
    ModelConfig,
    QueuePolicy,
    VersionPolicy,
    WarmUpInput,
    WarmUpSample,
)
from backline.engine.statistics import FIRST_RESPONSE_FAMILY
from backline.repository.configuration import native
from backline.repository.configuration.checks import check, check_samples, is_whole
from backline.repository.configuration.completion import may_be_completed
from backline.repository.configuration.document import CreationFault, Document, data_type, suggest
from backline.repository.configuration.effects import ignored_settings, without_effect
from backline.repository.configuration.native import parameter
from backline.repository.configuration.sequences import sequence_batching
from backline.repository.listing import Listing
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Shape


def read_joining(document: Document, name: str, settings: Mapping[str, Any]) -> Joining | None:
    """Returns the rules for joining requests to the model `name`; None if the configuration has no such
    rules.

    `settings` are the native settings for joining. Raises InvalidArgument if they contradict each other or
    the rest of the configuration.
    """
    message = document.message
    joining = Joining(
        ragged=tuple(tensor.name for tensor in message.input if tensor.allow_ragged_batch),
        batch_inputs=(*map(_batch_input, message.batch_input), *_rows_of_identity(message)),
        scattered=MappingProxyType(_scattered(message)),
        allowed_batch_sizes=settings.get("allowed_batch_sizes", ()),
        pad_all=settings.get("pad_variable_length_inputs", False),
        padding=MappingProxyType(
            {key: _padding(given) for key, given in sorted(settings.get("padding", {}).items())}
        ),
        cuts=MappingProxyType(
            {key: _cut(document, key, given) for key, given in sorted(settings.get("cut", {}).items())}
        ),
    )
    _check(document, name, joining, settings)
    return joining if joining != Joining() else None


def _rows_of_identity(message: Any) -> tuple[BatchInput, ...]:
    """Returns hidden inputs from which the backend identity learns the number of rows, which it needs for the
    outputs of absent inputs. Ragged inputs do not show it, because they are joined into one dimension.
    """
    if message.backend != "identity" or not any(given.optional for given in message.input):
        return ()
    ragged = [given.name for given in message.input if given.allow_ragged_batch]
    return tuple(BatchInput("BATCH_ITEM_SHAPE", (SHAPES_OF + name,), DataType.INT32, name) for name in ragged)


def _scattered(message: Any) -> dict[str, str]:
    """Returns, for each output that is scattered over the requests of a batch, the input with the same number
    of elements.
    """
    scattered = {
        target: output.source_input[0] for output in message.batch_output for target in output.target_name
    }
    if message.backend == "identity":  # this backend returns its ragged inputs, split by request
        pairs = zip(message.input, message.output, strict=False)
        scattered |= {output.name: given.name for given, output in pairs if given.allow_ragged_batch}
    return scattered


def _batch_input(given: Any) -> BatchInput:
    kind = given.Kind.Name(given.kind)
    return BatchInput(kind, tuple(given.target_name), data_type(given), given.source_input[0])


def _padding(given: Mapping[str, Any]) -> Padding:
    return Padding(
        given.get("axis", ()),
        given.get("value", ""),
        given.get("buckets", ()),
        given.get("lengths", ""),
        given.get("mask", ""),
    )


def _cut(document: Document, output: str, given: Mapping[str, Any]) -> Cut:
    if "to" not in given:
        raise document.error(
            f'cut.{output} does not name the input whose length decides where it is cut: add to = "NAME"',
            _first(output, given),
        )
    return Cut(given["to"], given.get("axis", 1), given.get("hop", 1), given.get("window", 1))


def _first(output: str, given: Mapping[str, Any]) -> str:
    return f"parameters[{parameter(f'cut.{output}.{next(iter(given))}')}]"


def _check(document: Document, name: str, joining: Joining, settings: Mapping[str, Any]) -> None:
    message = document.message
    for setting in (setting for setting, value in settings.items() if value is not False):
        if message.max_batch_size < 1:
            reason = f"{setting} is for models that take batches: set max_batch_size for {name}"
            raise document.error(reason, _path(document, setting))
        for section in ("sequence_batching", "ensemble_scheduling"):
            if message.HasField(section):
                raise document.error(
                    f"{setting} cannot be combined with {section} for {name}", _path(document, setting)
                )
    if message.HasField("sequence_batching") and (
        joining.ragged or joining.batch_inputs or joining.scattered
    ):
        raise document.error(
            "ragged inputs, batch_input and batch_output cannot be combined with sequence_batching for"
            f" {name}",
            "sequence_batching",
        )
    sizes = joining.allowed_batch_sizes
    if sizes and sizes[-1] != message.max_batch_size:
        reason = (
            f"the last of allowed_batch_sizes must be max_batch_size, which is {message.max_batch_size} for"
            f" {name}"
        )
        raise document.error(reason, _path(document, "allowed_batch_sizes"))
    inputs = [tensor.name for tensor in message.input]
    for where, key in (
        *((f"padding.{key}", key) for key in joining.padding),
        *((f"cut.{output}.to", cut.to) for output, cut in joining.cuts.items()),
    ):
        if inputs and key not in inputs:
            raise document.error(
                f"{where} names '{key}', which is not an input{suggest(key, inputs)}", _path(document, where)
            )
        if key in joining.ragged:
            raise document.error(
                f"{where} names '{key}', which is a ragged input of {name}; use another input",
                _path(document, where),
            )


def _path(document: Document, setting: str) -> str:
    """Returns the path of the first parameter of a setting; empty if the text has no such parameter."""
    return next((path for path in document.places if path.startswith(f"parameters[{parameter(setting)}")), "")


def to_model_config(document: Document, name: str, listing: Listing) -> ModelConfig:
    """Returns the checked configuration of the model `name` in the folder `listing`, with its label files
    read.

    The `warnings` of the configuration name the fields that have no effect. Raises InvalidArgument, which
    names the document's source and, if known, the line and column.
    """
    reader = _Reader(document, name, listing)
    try:
        return reader.config()
    except CreationFault as fault:
        fault.versions = reader.version_policy().specific
        raise


class _Reader:
    def __init__(self, document: Document, name: str, listing: Listing) -> None:
        self._document = document
        self._message = document.message
        self._name = name
        self._listing = listing
        self._warnings: list[str] = []

    def config(self) -> ModelConfig:
        message = self._message
        tensors = (*message.input, *message.output)
        whole = all(map(is_whole, tensors)) or not may_be_completed(
            message.backend, message.platform, self._listing
        )
        check(self._document, self._name, whole=whole)
        settings, of_joining = native.read_settings(self._document)
        self._note_fields_without_effect()
        if settings.get("pinned") and "idle_unload_seconds" in settings:
            self._warn("idle_unload_seconds has no effect: the model is pinned and stays loaded")
        outputs = tuple(
            self._output(index, tensor) for index, tensor in enumerate(message.output) if is_whole(tensor)
        )
        check_samples(self._document, self._name)
        self._check_number_of_versions()
        self._check_state_files()
        limit = self._max_batch_size()
        batching = message.dynamic_batching
        parameters = {
            key: value.string_value
            for key, value in sorted(message.parameters.items())
            if not key.startswith(native.PREFIX)
        }
        config = ModelConfig(
            name=self._name,
            backend=message.backend,
            platform=message.platform,
            max_batch_size=limit,
            inputs=tuple(self._input(tensor) for tensor in message.input if is_whole(tensor)),
            outputs=outputs,
            instance_count=self._instance_count(),
            instance_groups=tuple(map(_instance_group, message.instance_group)),
            dynamic_batching=self._dynamic_batching(of_joining, settings),
            preferred_batch_sizes=tuple(batching.preferred_batch_size),
            max_queue_delay_us=batching.max_queue_delay_microseconds,
            preserve_ordering=batching.preserve_ordering,
            priority_levels=batching.priority_levels,
            default_priority_level=batching.default_priority_level if batching.priority_levels else 0,
            queue_policy=queue_policy(batching.default_queue_policy),
            priority_queue_policies=self._priority_policies(),
            joining=read_joining(self._document, self._name, of_joining),
            sequence=sequence_batching(message),
            default_model_filename=self._model_filename(),
            ensemble=self._ensemble(),
            decoupled=message.model_transaction_policy.decoupled,
            response_cache=message.response_cache.enable,
            parameters=MappingProxyType(parameters),
            metric_tags=MappingProxyType(dict(sorted(message.metric_tags.items()))),
            first_response_bounds_ms=self._first_response_bounds(),
            warm_up=tuple(self._warm_up(index, sample) for index, sample in enumerate(message.model_warmup)),
            declared=message.SerializeToString(deterministic=True),
            source=self._document.source,
            places=self._document.places,
            warnings=tuple(self._warnings),
            **{"version_policy": self.version_policy(), **settings},
        )
        if config.ensemble is None:
            return config
        return replace(config, warnings=config.warnings + ignored_settings(config, "ensemble"))

    def _dynamic_batching(self, of_joining: Mapping[str, Any], settings: Mapping[str, Any]) -> bool | None:
        """Returns whether requests may share a run of the model; None if the server decides.

        As in Triton, a config.pbtxt with max_batch_size and without a scheduler means one request per run. If
        the configuration is a model.toml, has a latency objective, or has settings for joining requests, this
        server's defaults apply.
        """
        message = self._message
        if message.HasField("dynamic_batching"):
            return True
        if (
            message.max_batch_size < 1
            or message.WhichOneof("scheduling_choice") is not None
            or of_joining
            or "objective_seconds" in settings
            or any(tensor.allow_ragged_batch for tensor in message.input)
            or self._document.source.endswith(".toml")
        ):
            return None
        return False

    def _note_fields_without_effect(self) -> None:
        for path in dict.fromkeys(without_effect(self._message)):
            self._warn(f"{path} is not supported yet and has no effect")
        for tensors in ("input", "output") if self._message.HasField("ensemble_scheduling") else ():
            if any(tensor.HasField("reshape") for tensor in getattr(self._message, tensors)):
                self._warn(
                    f"{tensors}.reshape has no effect on an ensemble: set it for the models of its steps"
                )
        if any(group.passive for group in self._message.instance_group):
            self._warn(
                "passive instance groups have no effect: no backend uses instances that get no requests"
            )
        if any(group.secondary_devices for group in self._message.instance_group):
            self._warn("instance_group.secondary_devices has no effect: no runtime of this server uses NVDLA")

    def _first_response_bounds(self) -> tuple[float, ...]:
        """Returns the configured buckets of Triton's histogram of first responses. The buckets of other
        metrics cannot be configured.
        """
        bounds: tuple[float, ...] = ()
        for control in self._message.model_metrics.metric_control:
            family = control.metric_identifier.family
            if family == FIRST_RESPONSE_FAMILY:
                bounds = tuple(control.histogram_options.buckets)
            else:
                self._warn(
                    f"model_metrics has no effect on '{family}': it sets only the buckets of"
                    f" '{FIRST_RESPONSE_FAMILY}'"
                )
        return bounds

    def _warn(self, reason: str) -> None:
        self._warnings.append(f"{posixpath.basename(self._document.source)} of '{self._name}': {reason}")

    def _max_batch_size(self) -> int | None:
        if "max_batch_size" in self._document.places:
            return int(self._message.max_batch_size)
        # If a configuration names tensors, Triton's default, 0, applies. It means that the shapes in the
        # configuration are complete; with a batch dimension added, they would be wrong.
        return 0 if self._message.input or self._message.output else None

    def _input(self, tensor: Any) -> TensorSpec:
        return TensorSpec(
            tensor.name,
            data_type(tensor),
            tuple(tensor.dims),
            optional=tensor.optional,
            reshape=_reshape(tensor),
        )

    def _output(self, index: int, tensor: Any) -> TensorSpec:
        path = f"output[{index}].label_filename"
        labels = self._labels(tensor.name, tensor.label_filename, path) if tensor.label_filename else ()
        return TensorSpec(
            tensor.name, data_type(tensor), tuple(tensor.dims), labels=labels, reshape=_reshape(tensor)
        )

    def _labels(self, output: str, filename: str, path: str) -> tuple[str, ...]:
        what = f"label_filename of output '{output}'"
        file = self._present(what, "", filename, path)
        try:
            return tuple(self._listing.read(file).decode().splitlines())
        except BacklineError as error:
            raise self._document.error(f"{what} cannot be read: {error.message}", path) from None
        except UnicodeDecodeError as error:
            raise self._document.error(
                f"{what} is not UTF-8 text: {self._where(file)} (byte {error.start})", path
            ) from None

    def _where(self, file: str) -> str:
        return f"'{self._listing.location.rstrip('/')}/{file}'"

    def _inside_folder(self, field: str, filename: str, path: str) -> str:
        """Returns the normalised path of a file. Raises InvalidArgument if it is outside the model's
        folder.
        """
        normal = posixpath.normpath(filename)
        if "\0" in filename or "\\" in filename or normal.startswith(("/", "..")) or normal == ".":
            raise self._document.error(
                f"{field} {filename!r} must be the name of a file inside the model's folder", path
            )
        return normal

    def _present(self, what: str, folder: str, filename: str, path: str) -> str:
        """Returns the path of a file in a subfolder `folder` (such as "warmup/") of the model's folder.
        Raises CreationFault if there is no such file, and InvalidArgument if the file is outside the folder
        or cannot be read.
        """
        file = folder + self._inside_folder(what, filename, path)
        entry = self._listing.files.get(file)
        if entry is None:
            missing = f"{self._listing.location.rstrip('/')}/{file}"
            raise self._document.creation_fault(
                f"failed to open text file for read {missing}: No such file or directory; it is the {what}",
                path,
                "Internal",
            )
        if entry.problem:
            raise self._document.error(f"{what} cannot be read: {entry.problem}", path)
        return file

    def _check_state_files(self) -> None:
        for index, state in enumerate(self._message.sequence_batching.state):
            for number, initial in enumerate(state.initial_state):
                if initial.WhichOneof("state_data") == "data_file":
                    path = f"sequence_batching.state[{index}].initial_state[{number}].data_file"
                    self._present(
                        f"data_file of state '{state.input_name}'", "initial_state/", initial.data_file, path
                    )

    def _priority_policies(self) -> Mapping[int, QueuePolicy]:
        batching = self._message.dynamic_batching
        if not batching.priority_levels:
            return MappingProxyType({})
        return MappingProxyType(
            {level: queue_policy(given) for level, given in sorted(batching.priority_queue_policy.items())}
        )

    def _ensemble(self) -> Ensemble | None:
        if not self._message.HasField("ensemble_scheduling"):
            return None
        given = self._message.ensemble_scheduling
        return Ensemble(tuple(map(_step, given.step)), given.max_inflight_requests)

    def _model_filename(self) -> str:
        filename: str = self._message.default_model_filename
        if filename:
            self._inside_folder("default_model_filename", filename, "default_model_filename")
        return filename

    def version_policy(self) -> VersionPolicy:
        policy = self._message.version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return VersionPolicy(latest=None)
        if choice == "specific":
            return VersionPolicy(
                latest=None, specific=tuple(dict.fromkeys(map(str, policy.specific.versions)))
            )
        return VersionPolicy(latest=policy.latest.num_versions or 1)

    def _check_number_of_versions(self) -> None:
        """Refuses an explicit 0, for which Triton serves no version."""
        path = "version_policy.latest.num_versions"
        if path in self._document.places and not self._message.version_policy.latest.num_versions:
            raise InvalidArgument(
                f"{UNAVAILABLE_VERSIONS} '{self._name}': {path} is 0, expected the number of newest"
                f" versions to serve, at least 1 ({self._document.where(path)})"
            )

    def _instance_count(self) -> int | None:
        count = sum((group.count or 1) * max(1, len(group.gpus)) for group in self._message.instance_group)
        if count > MAX_INSTANCES:
            reason = (
                f"instance_group asks for {count} instances; at most {MAX_INSTANCES} are allowed, because"
                " each runs on a thread"
            )
            raise self._document.error(reason, "instance_group")
        return count or None

    def _warm_up(self, index: int, sample: Any) -> WarmUpSample:
        inputs = []
        for name, given in sorted(sample.inputs.items()):
            choice = given.WhichOneof("input_data_type")
            source = {"zero_data": "zero", "random_data": "random"}.get(choice, given.input_data_file)
            if choice == "input_data_file":
                path = f"model_warmup[{index}].inputs[{name}].input_data_file"
                file = self._present(
                    f"input_data_file of warm-up '{sample.name}'", "warmup/", given.input_data_file, path
                )
                source = file.removeprefix("warmup/")
            inputs.append(WarmUpInput(name, data_type(given), tuple(given.dims), source))
        return WarmUpSample(sample.name, sample.batch_size, max(sample.count, 1), tuple(inputs))


def _instance_group(given: Any) -> InstanceGroup:
    limiter = given.rate_limiter
    resources = tuple(
        Resource(resource.name, resource.count, getattr(resource, "global")) for resource in limiter.resources
    )
    kind = given.Kind.Name(given.kind).removeprefix("KIND_").lower()
    return InstanceGroup(
        given.count or 1,
        resources,
        limiter.priority or 1,
        kind,
        tuple(given.gpus),
        given.name,
        given.passive,
        counted=given.count > 0,
    )


def _step(given: Any) -> EnsembleStep:
    version = str(given.model_version) if given.model_version > 0 else ""  # -1 means the default version
    inputs, outputs = (
        MappingProxyType(dict(sorted(tensors.items()))) for tensors in (given.input_map, given.output_map)
    )
    return EnsembleStep(given.model_name, version, inputs, outputs)


def _reshape(tensor: Any) -> Shape | None:
    return tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None


def queue_policy(given: Any) -> QueuePolicy:
    """Returns the policy in an inference.ModelQueuePolicy."""
    delay = given.timeout_action == given.TimeoutAction.Value("DELAY")
    return QueuePolicy(
        given.max_queue_size or None, given.default_timeout_microseconds, given.allow_timeout_override, delay
    )
