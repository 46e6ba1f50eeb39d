"""config.pbtxt of Triton, read into a ModelConfig."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast, get_args

from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor

from backline.engine.datatypes import DataType
from backline.engine.errors import InvalidArgument
from backline.engine.model_config import Lane, ModelConfig, VersionPolicy
from backline.engine.signature import TensorSpec
from backline.protos import message, pool

#: The parameter that sets where a model runs; config.pbtxt has no field for it.
LANE_PARAMETER = "backline.lane"
#: Far more than cores; a typing error must not use up the machine.
MAX_INSTANCES = 256

#: The fields that have an effect. A message that is not named as `<field>.` is not looked into.
_SUPPORTED = frozenset(
    {
        "name",
        "backend",
        "platform",
        "max_batch_size",
        "default_model_filename",
        "parameters",
        "version_policy",
        "input.name",
        "input.data_type",
        "input.dims",
        "input.optional",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.label_filename",
        "instance_group.name",
        "instance_group.count",
        "instance_group.kind",
        "dynamic_batching.preferred_batch_size",
        "dynamic_batching.max_queue_delay_microseconds",
        "dynamic_batching.default_queue_policy.max_queue_size",
        "dynamic_batching.default_queue_policy.default_timeout_microseconds",
    }
)
#: The messages on the way to them.
_SECTIONS = frozenset(name[: match.start()] for name in _SUPPORTED for match in re.finditer(r"\.", name))
#: Names from other frameworks, and what they are called here.
_ALIASES = {
    "TYPE_FLOAT": "TYPE_FP32",
    "TYPE_FLOAT32": "TYPE_FP32",
    "TYPE_DOUBLE": "TYPE_FP64",
    "TYPE_FLOAT64": "TYPE_FP64",
    "TYPE_HALF": "TYPE_FP16",
    "TYPE_FLOAT16": "TYPE_FP16",
    "TYPE_BFLOAT16": "TYPE_BF16",
    "TYPE_BYTES": "TYPE_STRING",
    "TYPE_INT": "TYPE_INT32",
}


def read(path: Path, name: str) -> ModelConfig:
    """The configuration in the file `path` of the model whose folder is called `name`.

    Raises InvalidArgument with the file, and where possible the line and the column, when the file cannot be read, is not valid text format
    of inference.ModelConfig, or contradicts itself. Fields that are valid but have no effect here are named in `warnings`.
    """
    if path.exists() and not path.is_file():  # it could wait for its writer
        raise InvalidArgument(f"{path}: is not a regular file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InvalidArgument(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"{path}: is not UTF-8 text (byte {error.start})") from None
    return _Reader(path, name, _parse(path, text), _has_max_batch_size(text)).config()


def _parse(path: Path, text: str) -> Any:
    parsed = message("inference.ModelConfig")()
    try:
        text_format.Parse(text, parsed, descriptor_pool=pool())
    except text_format.ParseError as error:
        line, column = error.GetLine(), error.GetColumn()
        where = f"{path}:{line}:{column}" if line is not None else str(path)
        raise InvalidArgument(f"{where}: {_explain(str(error))}") from None
    return parsed


def _has_max_batch_size(text: str) -> bool:
    """Whether the text sets max_batch_size: the message itself does not tell 0 from nothing."""
    probe = message("inference.ModelConfig")(max_batch_size=-(2**31))
    text_format.Merge(text, probe, descriptor_pool=pool())
    return bool(probe.max_batch_size != -(2**31))


def _explain(error: str) -> str:
    """The parser's reason in one line, with the nearest known name."""
    reason = re.sub(r"^\d+:\d+ : ", "", error.replace("\n", " "))
    if found := re.fullmatch(r'Message type "([\w.]+)" has no field named "([^"]*)"\.', reason):
        descriptor = pool().FindMessageTypeByName(found[1])
        return f"unknown field '{found[2]}'{_suggest(found[2], _field_names(descriptor))}"
    if found := re.search(r'Enum type "([\w.]+)" has no value named (\w+)\.', reason):
        values = [value.name for value in pool().FindEnumTypeByName(found[1]).values]
        return f"unknown value '{found[2]}'{_suggest(found[2], values)}"
    return re.sub(r"^'.*': (?=[A-Z])", "", reason)


def _field_names(descriptor: Descriptor) -> list[str]:
    return [field.name for field in descriptor.fields]


def _suggest(name: str, known: Iterable[str]) -> str:
    names = [known_name for known_name in known if known_name != "TYPE_INVALID"]
    near = [_ALIASES[name]] if name in _ALIASES else difflib.get_close_matches(name, names, 1)
    return f", did you mean '{near[0]}'?" if near else f"; expected one of {', '.join(names)}"


class _Reader:
    """The fields of one parsed file, checked."""

    def __init__(self, path: Path, name: str, parsed: Any, has_max_batch_size: bool) -> None:
        self._path = path
        self._name = name
        self._parsed = parsed
        self._has_max_batch_size = has_max_batch_size
        self._warnings: list[str] = []

    def config(self) -> ModelConfig:
        parsed = self._parsed
        self._check_name()
        self._note_unsupported()
        limit = self._max_batch_size()
        inputs = tuple(self._tensor("input", tensor) for tensor in parsed.input)
        outputs = tuple(self._tensor("output", tensor) for tensor in parsed.output)
        self._check_unique("input", inputs)
        self._check_unique("output", outputs)
        batching = parsed.dynamic_batching
        policy = batching.default_queue_policy
        parameters = {key: parameter.string_value for key, parameter in sorted(parsed.parameters.items())}
        return ModelConfig(
            name=self._name,
            backend=parsed.backend,
            platform=parsed.platform,
            max_batch_size=limit,
            inputs=inputs,
            outputs=outputs,
            version_policy=self._version_policy(),
            instance_count=self._instance_count(),
            lane=self._lane(parameters.pop(LANE_PARAMETER, None)),
            dynamic_batching=True if parsed.HasField("dynamic_batching") else None,
            preferred_batch_sizes=self._preferred_batch_sizes(limit),
            max_queue_delay_us=batching.max_queue_delay_microseconds,
            max_queue_size=policy.max_queue_size or None,
            default_timeout_us=policy.default_timeout_microseconds,
            default_model_filename=self._model_filename(),
            parameters=MappingProxyType(parameters),
            source=str(self._path),
            warnings=tuple(self._warnings),
        )

    def _error(self, reason: str) -> InvalidArgument:
        return InvalidArgument(f"{self._path}: {reason}")

    def _warn(self, reason: str) -> None:
        self._warnings.append(f"{self._path.name} of '{self._name}': {reason}")

    def _check_name(self) -> None:
        given = self._parsed.name
        if given and given != self._name:
            raise self._error(f"unexpected directory name '{self._name}' for model '{given}', directory name must equal model name")
        if self._parsed.HasField("ensemble_scheduling") or self._parsed.platform == "ensemble":
            raise self._error(f"model '{self._name}' is an ensemble, which is not supported yet")

    def _note_unsupported(self) -> None:
        for path in dict.fromkeys(_set_fields(self._parsed, "")):
            self._warn(f"{path} is not supported yet and has no effect")

    def _max_batch_size(self) -> int | None:
        limit: int = self._parsed.max_batch_size
        if limit < 0:
            raise self._error(f"'max_batch_size' must be non-negative value for {self._name}")
        if self._has_max_batch_size:
            return limit
        # Triton's default is 0, and with tensors named their shapes are then without a batch: anything else would read them differently.
        return 0 if self._parsed.input or self._parsed.output else None

    def _tensor(self, kind: str, tensor: Any) -> TensorSpec:
        name: str = tensor.name
        if not name:
            raise self._error(f"model {kind} must specify 'name'")
        if not tensor.data_type:
            raise self._error(f"model {kind} '{name}' must specify 'data_type'")
        for dim in tensor.dims:
            if dim < -1:
                raise self._error(
                    f"model {kind} '{name}' has dimension {dim}; it must be integer >= 0, or -1 to indicate a variable-size dimension"
                )
        datatype = DataType.from_config_name(_data_type_name(tensor.data_type))
        if kind == "input":
            return TensorSpec(name, datatype, tuple(tensor.dims), optional=tensor.optional)
        return TensorSpec(name, datatype, tuple(tensor.dims), labels=self._labels(name, tensor.label_filename))

    def _check_unique(self, kind: str, tensors: tuple[TensorSpec, ...]) -> None:
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                raise self._error(f"model {kind} '{name}' is given more than once")

    def _labels(self, output: str, filename: str) -> tuple[str, ...]:
        if not filename:
            return ()
        path = self._inside_folder("label_filename", filename)
        try:
            return tuple(path.read_text("utf-8").splitlines())
        except OSError as error:
            raise self._error(f"label_filename of output '{output}' cannot be read: '{path}': {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise self._error(f"label_filename of output '{output}' is not UTF-8 text: '{path}' (byte {error.start})") from None

    def _model_filename(self) -> str:
        filename: str = self._parsed.default_model_filename
        if filename:
            self._inside_folder("default_model_filename", filename)
        return filename

    def _inside_folder(self, field: str, filename: str) -> Path:
        folder = self._path.parent
        path = folder / filename
        if "\0" in filename or Path(filename).is_absolute() or not path.resolve().is_relative_to(folder.resolve()):
            raise self._error(f"{field} {filename!r} must be the name of a file inside the model's folder")
        return path

    def _version_policy(self) -> VersionPolicy:
        policy = self._parsed.version_policy
        choice = policy.WhichOneof("policy_choice")
        if choice == "all":
            return VersionPolicy(latest=None)
        if choice == "specific":
            if not policy.specific.versions:
                raise self._error("version_policy.specific names no version")
            return VersionPolicy(latest=None, specific=tuple(dict.fromkeys(map(str, policy.specific.versions))))
        return VersionPolicy(latest=policy.latest.num_versions or 1)

    def _instance_count(self) -> int | None:
        groups = self._parsed.instance_group
        for group in groups:
            if group.count < 0:
                raise self._error(f"instance_group has count {group.count}; it must be positive")
            if group.Kind.Name(group.kind) == "KIND_GPU":
                self._warn("instance_group.kind KIND_GPU is not supported yet; the model runs on the CPU")
        count = sum(group.count or 1 for group in groups)
        if count > MAX_INSTANCES:
            raise self._error(f"instance_group asks for {count} instances; at most {MAX_INSTANCES} are possible, each is a thread")
        return count or None

    def _preferred_batch_sizes(self, limit: int | None) -> tuple[int, ...]:
        sizes = tuple(self._parsed.dynamic_batching.preferred_batch_size)
        for size in sizes:
            if size <= 0:
                raise self._error(f"dynamic batching preferred size must be positive for {self._name}")
            if size > (limit or 0) and limit is not None:
                raise self._error(f"dynamic batching preferred size must be <= max batch size for {self._name} ({size} > {limit})")
        return sizes

    def _lane(self, lane: str | None) -> Lane | None:
        if lane is None:
            return None
        if lane not in get_args(Lane):
            raise self._error(f"parameter '{LANE_PARAMETER}' is '{lane}', expected {' or '.join(get_args(Lane))}")
        return cast(Lane, lane)


def _data_type_name(number: int) -> str:
    return str(pool().FindEnumTypeByName("inference.DataType").values_by_number[number].name)


def _set_fields(section: Any, prefix: str) -> Iterator[str]:
    """The paths of fields that are set but have no effect, without the indexes of lists."""
    for field, value in section.ListFields():
        path = prefix + field.name
        if path in _SUPPORTED:
            continue
        if path in _SECTIONS:
            for part in value if not hasattr(value, "ListFields") else (value,):
                yield from _set_fields(part, path + ".")
        elif not _says_nothing(field.name, value):
            yield path


def _says_nothing(name: str, value: Any) -> bool:
    """Whether a section only switches off what is off anyway."""
    return name in {"response_cache", "model_transaction_policy"} and not value.ListFields()
