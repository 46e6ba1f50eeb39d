"""Defines the settings that Triton lacks. They are keys in model.toml, and parameters `backline.*` in
config.pbtxt.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, get_args

from backline.engine.config.model_config import AnyLane, VersionPolicy
from backline.engine.numbers import parse_whole
from backline.repository.configuration.document import Document, suggest

PREFIX: Final = "backline."
_MOST: Final = 2**63 - 1
_PYTHON: Final = re.compile(r"3\.[0-9]{1,3}(\.[0-9]{1,3})?")
#: Parameters that the server adds to a configuration that it returns to a client. They are ignored if the
#: client sends the configuration back.
PLACEMENT: Final = "backline.placement"
SCHEDULING: Final = "backline.scheduling"


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"expected {', '.join(choices[:-1])} or {choices[-1]}")
        return text

    return read


def _truth(text: str) -> bool:
    return _choice("true", "false")(text) == "true"


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds(text: str) -> float:
    seconds = _number(text)
    if not 0 < seconds < math.inf:
        raise ValueError("expected a number of seconds above 0")
    return seconds


def _milliseconds(text: str) -> float:
    try:
        return _seconds(text) / 1000
    except ValueError:
        raise ValueError("expected a number of milliseconds above 0") from None


def _amount(text: str) -> float:
    amount = _number(text)
    if not 0 <= amount < math.inf:
        raise ValueError("expected a number of at least 0")
    return amount


def _whole(least: int, most: int, expected: str) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = parse_whole(text, least, most)
        if number is None:
            raise ValueError(f"expected {expected}")
        return number

    return read


_above_0 = _whole(1, _MOST, "a whole number above 0")
_core = _whole(0, 4095, "core numbers such as 0,2 or 0-3")
_listed = _whole(0, _MOST, "whole numbers, separated by commas")


def _cores(text: str) -> tuple[int, ...]:
    """Parses a list of cores in the form that taskset accepts, such as 0,2 or 0-3,6."""
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        cores.update(range(_core(first), _core(last if dash else first) + 1))
    if not cores:
        raise ValueError("expected core numbers such as 0,2 or 0-3")
    return tuple(sorted(cores))


def _python(text: str) -> str:
    if not _PYTHON.fullmatch(text):
        raise ValueError("expected a version of Python such as 3.13")
    return text


def _versions(text: str) -> tuple[str, ...]:
    versions = tuple(dict.fromkeys(version.strip() for version in text.split(",")))
    if "" in versions:
        raise ValueError("expected names of versions, separated by commas")
    return versions


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(_listed(part.strip()) for part in text.split(","))


def _ascending(text: str) -> tuple[int, ...]:
    sizes = _numbers(text)
    if not sizes[0] or any(size <= before for before, size in pairwise(sizes)):
        raise ValueError("expected whole numbers above 0, each larger than the one before")
    return sizes


def _signed(text: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise ValueError("expected a whole number")
    return int(text)


def _constant(text: str) -> str:
    return text


def _name_of(what: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not text:
            raise ValueError(f"expected the name of a {what}")
        return text

    return read


_PLAIN_NAMES: Final = {
    str: "a string",
    list: "a list",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One of the settings that Triton lacks.

    `read` parses the value from the text of a parameter, and raises a ValueError that says what is expected.
    In model.toml, the value may have one of the types `plain`. If `by_key` is set, the setting is a table,
    and each entry of the table is a parameter `backline.<name>.<key>`; if `keys` are given, only these keys
    are valid. If there are `fields`, each entry is a table as well, whose entries are parameters
    `backline.<name>.<key>.<field>`.
    """

    name: str
    read: Callable[[str], Any]
    plain: tuple[type, ...]
    by_key: bool = False
    fields: tuple[Setting, ...] = ()
    keys: tuple[str, ...] = ()

    def field(self, name: str) -> Setting | None:
        return next((field for field in self.fields if field.name == name), None)

    def paths(self, entry: str = "KEY") -> list[str]:
        """Returns the paths of all parameters of this setting, with `entry` in place of an arbitrary key."""
        if not self.by_key:
            return [self.name]
        names = [f"{self.name}.{key}" for key in self.keys or (entry,)]
        return [f"{name}.{field.name}" for name in names for field in self.fields] or names

    @property
    def expected(self) -> str:
        """The types that the value may have in model.toml, as words for an error message."""
        return " or ".join(_PLAIN_NAMES[kind] for kind in self.plain)


SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            Setting("lane", _choice(*get_args(AnyLane)), (str,)),
            Setting("lone_run_threads", _whole(1, 1024, "a number of threads from 1 to 1024"), (int,)),
            Setting("cpus", _cores, (int, str, list)),
            Setting("versions", _versions, (list,)),
            Setting("labels", _name_of("version"), (str, int), by_key=True),
            Setting("batch_axis", _whole(0, _MOST, "the index of a dimension, from 0"), (int,), by_key=True),
            Setting("constant_input", _constant, (int, float, bool, str), by_key=True),
            Setting("pinned", _truth, (bool,)),
            Setting("load", _choice("at_start", "on_demand"), (str,)),
            Setting("idle_unload_seconds", _seconds, (int, float)),
            Setting("load_retries", _whole(0, 1000, "a number from 0 to 1000"), (int,)),
            Setting("execution_timeout_seconds", _seconds, (int, float)),
            Setting("objective", _milliseconds, (int, float), by_key=True, keys=("p99_ms",)),
            Setting("default_deadline_seconds", _seconds, (int, float)),
            Setting("idempotent", _truth, (bool,)),
            Setting("memory_limit_bytes", _whole(1, _MOST, "a number of bytes above 0"), (int,)),
            Setting("python", _python, (str,)),
            Setting(
                "ray_actor_options",
                _amount,
                (int, float),
                by_key=True,
                keys=("memory", "num_cpus", "num_gpus"),
            ),
            Setting("allowed_batch_sizes", _ascending, (list,)),
            Setting("enable_large_batch_splitting", _truth, (bool,)),
            Setting("pad_variable_length_inputs", _truth, (bool,)),
            Setting(
                "padding",
                _constant,
                (),
                by_key=True,
                fields=(
                    Setting("axis", _numbers, (int, list)),
                    Setting("value", _constant, (int, float, bool, str)),
                    Setting("buckets", _ascending, (list,)),
                    Setting("lengths", _name_of("tensor"), (str,)),
                    Setting("mask", _name_of("tensor"), (str,)),
                ),
            ),
            Setting(
                "cut",
                _constant,
                (),
                by_key=True,
                fields=(
                    Setting("to", _name_of("tensor"), (str,)),
                    Setting("axis", _above_0, (int,)),
                    Setting("hop", _above_0, (int,)),
                    Setting("window", _signed, (int,)),
                ),
            ),
        )
    }
)


#: The settings whose values become fields of ModelConfig with the same names.
_AS_THEY_ARE: Final = (
    "lane",
    "lone_run_threads",
    "cpus",
    "pinned",
    "idle_unload_seconds",
    "load_retries",
    "execution_timeout_seconds",
    "idempotent",
    "memory_limit_bytes",
    "python",
    "default_deadline_seconds",
)
#: The settings that cannot be combined with the lane `inline`, each with the reason.
_NOT_INLINE: Final = (
    ("execution_timeout_seconds", "a run on the event loop cannot be abandoned"),
    ("cpus", "the event loop is not bound to cores"),
)
#: The settings that define how requests of different shapes are joined.
_OF_JOINING: Final = (
    "allowed_batch_sizes",
    "enable_large_batch_splitting",
    "pad_variable_length_inputs",
    "padding",
    "cut",
)


def parameter(path: str) -> str:
    """Returns the key of the parameter for a setting ("lane") or for an entry of a setting
    ("labels.stable").
    """
    return PREFIX + path


def as_text(value: Any) -> str:
    """Formats a value from model.toml as the text of a parameter."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def read_settings(document: Document) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the native settings of a document: the fields of ModelConfig, and the settings for joining, by
    name.

    Raises InvalidArgument for unknown settings, invalid values, and settings that contradict each other.
    """
    given: dict[str, Any] = {}
    for key, value in document.message.parameters.items():
        if not key.startswith(PREFIX) or key in (PLACEMENT, SCHEDULING):
            continue
        name, _, entry = key.removeprefix(PREFIX).partition(".")
        setting = SETTINGS.get(name)
        path = f"parameters[{key}]"
        inner = ""
        if setting is not None and setting.fields:
            entry, _, inner = entry.rpartition(".")
        if (
            setting is None
            or setting.by_key != bool(entry)
            or (setting.keys and entry not in setting.keys)
            or (setting.fields and setting.field(inner) is None)
        ):
            raise document.error(f"unknown parameter '{key}'{suggest(key, _known(entry or 'KEY'))}", path)
        if inner:
            setting = setting.field(inner)
            assert setting is not None, "checked above"
        try:
            read = setting.read(value.string_value)
        except ValueError as error:
            raise document.error(f"parameter '{key}' is '{value.string_value}', {error}", path) from None
        if inner:
            given.setdefault(name, {}).setdefault(entry, {})[inner] = read
        elif setting.by_key:
            given.setdefault(name, {})[entry] = read
        else:
            given[name] = read
    return _as_fields(document, given), {name: given[name] for name in _OF_JOINING if name in given}


def _known(entry: str) -> list[str]:
    """Returns the keys of the `backline.*` parameters for all settings. `entry` is the placeholder for any
    key of a setting that is a table.
    """
    return [parameter(path) for setting in SETTINGS.values() for path in setting.paths(entry)]


def _as_fields(document: Document, given: dict[str, Any]) -> dict[str, Any]:
    for name, why in _NOT_INLINE:
        if given.get("lane") == "inline" and name in given:
            raise document.error(
                f"lane inline and {name} contradict each other: {why}", f"parameters[{parameter(name)}]"
            )
    fields: dict[str, Any] = {name: given[name] for name in _AS_THEY_ARE if name in given}
    if "enable_large_batch_splitting" in given:
        fields["split_large_batches"] = given["enable_large_batch_splitting"]
    if "load" in given:
        fields["on_demand"] = given["load"] == "on_demand"
    if "objective" in given:
        fields["objective_seconds"] = given["objective"]["p99_ms"]
    if "labels" in given:
        fields["labels"] = MappingProxyType(given["labels"])
    for name, field in (
        ("batch_axis", "batch_axes"),
        ("constant_input", "constant_inputs"),
        ("ray_actor_options", "ray_actor_options"),
    ):
        if name in given:
            fields[field] = MappingProxyType(given[name])
    if "versions" in given:
        if document.message.HasField("version_policy"):
            raise document.error(
                "versions and version_policy contradict each other; give one of them",
                f"parameters[{parameter('versions')}]",
            )
        fields["version_policy"] = VersionPolicy(latest=None, specific=given["versions"])
    return fields
