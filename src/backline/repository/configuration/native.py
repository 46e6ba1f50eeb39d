"""Defines the settings that Triton lacks: keys in model.toml, and parameters `backline.*` in config.pbtxt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, get_args

from backline.engine.config.model_config import AnyLane, VersionPolicy
from backline.repository.configuration.document import Document, suggest

PREFIX: Final = "backline."
_PYTHON: Final = re.compile(r"3\.[0-9]{1,3}(\.[0-9]{1,3})?")
#: Parameters that the server adds to a configuration when it returns it. A configuration that a client sends
#: back may contain them; they are then ignored.
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


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError("expected seconds above 0")
    return seconds


def _milliseconds(text: str) -> float:
    try:
        return _seconds(text) / 1000
    except ValueError:
        raise ValueError("expected milliseconds above 0") from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 1000:
        raise ValueError("expected a number from 0 to 1000")
    return int(text)


def _cores(text: str) -> tuple[int, ...]:
    """Parses a list of cores in the form that taskset accepts, such as 0,2 or 0-3,6."""
    cores: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(end.isascii() and end.isdigit() and int(end) < 4096 for end in ends):
            raise ValueError("expected core numbers such as 0,2 or 0-3")
        cores.update(range(int(ends[0]), int(ends[1]) + 1))
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


def _axis(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError("expected the index of a dimension, from 0")
    return int(text)


def _numbers(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ValueError("expected whole numbers, separated by commas")
    return tuple(map(int, parts))


def _ascending(text: str) -> tuple[int, ...]:
    sizes = _numbers(text)
    if not sizes[0] or any(size <= before for before, size in pairwise(sizes)):
        raise ValueError("expected whole numbers above 0, each larger than the one before")
    return sizes


def _above_0(what: str = "whole number") -> Callable[[str], int]:
    def read(text: str) -> int:
        if not (text.isascii() and text.isdigit()) or not int(text):
            raise ValueError(f"expected a {what} above 0")
        return int(text)

    return read


def _whole(text: str) -> int:
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
    """A setting of the server.

    `read` parses the value from the text of a parameter; it raises ValueError, saying what is expected. In
    model.toml, the value may have the types `plain`. If `by_key` is set, the setting is a table, and each
    entry is a parameter `backline.<name>.<key>`; if `keys` are given, only these are valid. If there are
    `fields`, each entry is a table as well, and its entries are parameters `backline.<name>.<key>.<field>`.
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
        """The types that the value may have in model.toml, in words, for an error message."""
        return " or ".join(_PLAIN_NAMES[kind] for kind in self.plain)


SETTINGS: Final[Mapping[str, Setting]] = MappingProxyType(
    {
        setting.name: setting
        for setting in (
            Setting("lane", _choice(*get_args(AnyLane)), (str,)),
            Setting("cpus", _cores, (int, str, list)),
            Setting("versions", _versions, (list,)),
            Setting("labels", _name_of("version"), (str, int), by_key=True),
            Setting("batch_axis", _axis, (int,), by_key=True),
            Setting("constant_input", _constant, (int, float, bool, str), by_key=True),
            Setting("pinned", _truth, (bool,)),
            Setting("load", _choice("at_start", "on_demand"), (str,)),
            Setting("idle_unload_seconds", _seconds, (int, float)),
            Setting("load_retries", _count, (int,)),
            Setting("execution_timeout_seconds", _seconds, (int, float)),
            Setting("objective", _milliseconds, (int, float), by_key=True, keys=("p99_ms",)),
            Setting("default_deadline_seconds", _seconds, (int, float)),
            Setting("idempotent", _truth, (bool,)),
            Setting("memory_limit_bytes", _above_0("number of bytes"), (int,)),
            Setting("python", _python, (str,)),
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
                    Setting("axis", _above_0(), (int,)),
                    Setting("hop", _above_0(), (int,)),
                    Setting("window", _whole, (int,)),
                ),
            ),
        )
    }
)


#: Settings that are fields of ModelConfig with the same names.
_AS_THEY_ARE: Final = (
    "lane",
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
#: The settings that cannot be combined with the lane `inline`, and the reasons.
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

    Raises InvalidArgument for unknown settings and invalid values.
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
    """Returns the keys of the `backline.*` parameters for all settings. `entry` stands for any key of a
    setting that is a table.
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
    for name, field in (("batch_axis", "batch_axes"), ("constant_input", "constant_inputs")):
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
