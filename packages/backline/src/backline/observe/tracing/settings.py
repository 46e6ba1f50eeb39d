"""Trace settings, both global and per model, with Triton's names and rules. Also parses the option
--trace-config, which is Triton's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field
from msgspec.structs import replace

from backline.engine.numbers import parse_whole
from backline.engine.tracing import SettingValue
from backline_client.values.errors import InvalidArgument, Unsupported
from backline_client.values.spelling import nearest

Level: TypeAlias = Literal["TIMESTAMPS", "TENSORS"]
Mode: TypeAlias = Literal["triton", "opentelemetry"]
LEVELS: Final[tuple[Level, ...]] = ("TIMESTAMPS", "TENSORS")

_RANGES: Final = {
    "trace_rate": (0, 2**32 - 1),
    "trace_count": (-1, 2**31 - 1),
    "log_frequency": (0, 2**32 - 1),
}
#: The settings that clients may change.
CHANGEABLE: Final = ("trace_level", *_RANGES)


class TraceSetting(Struct, eq=False):
    """The trace settings of one model, or the global trace settings. They decide which requests are traced.

    The last of every `trace_rate` requests is traced, until `trace_count` requests have been traced; -1 means
    no limit. `specified` has the names of the settings that were set here rather than inherited.
    """

    trace_level: tuple[Level, ...] = ()
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    specified: frozenset[str] = frozenset()
    #: The number of requests considered for sampling.
    seen: int = 0
    #: The number of completed traces.
    collected: int = 0

    @property
    def on(self) -> bool:
        return bool(self.trace_level)

    def sample(self, *, forced: bool = False) -> bool:
        """Returns whether to trace the next request. A `forced` request is always traced while tracing is
        on.
        """
        if not self.on:
            return False
        hit = False
        if self.trace_rate and (self.trace_count or forced):
            self.seen += 1
            hit = self.seen % self.trace_rate == 0 and self.trace_count != 0
            if hit and self.trace_count > 0:
                self.trace_count -= 1
        return hit or forced

    def shown(self) -> dict[str, SettingValue]:
        """Returns the settings in the form in which clients see them."""
        levels: list[str] = [level for level in LEVELS if level in self.trace_level]
        return {"trace_level": levels or ["OFF"], **{name: str(getattr(self, name)) for name in _RANGES}}


def changed(
    current: TraceSetting | None, fallback: TraceSetting, changes: Mapping[str, object]
) -> TraceSetting:
    """Returns the settings after `changes`. Settings that are unset, or reset with None, come from
    `fallback`.
    """
    before = current.specified if current is not None else frozenset()
    cleared = {name for name, value in changes.items() if value is None}
    values = {name: getattr(current, name) for name in before - cleared}
    values |= {name: value for name, value in changes.items() if value is not None}
    return replace(fallback, **values, specified=frozenset(values), seen=0, collected=0)


class SettingTable:
    """The settings at three levels: a model's settings override the global settings, which override the
    settings that were given when the server started.
    """

    def __init__(self, start: TraceSetting, mode: Mode) -> None:
        self._start = start
        self._mode = mode
        self._all = replace(start)  # a copy, because counting requests changes the object
        self._models: dict[str, TraceSetting] = {}

    @property
    def any_on(self) -> bool:
        return self._all.on or any(setting.on for setting in self._models.values())

    def of(self, model: str) -> TraceSetting:
        return self._models.get(model, self._all)

    def update(self, model: str, changes: Mapping[str, SettingValue | None], *, has_file: bool) -> None:
        """Makes all of the changes or none. Raises InvalidArgument or Unsupported; see TraceControl."""
        read = read_changes(changes, self._mode)
        if model:
            setting = changed(self._models.get(model), self._all, read)
            self._check(setting, has_file=has_file)
            self._put(model, setting)
            return
        for_all = changed(self._all, self._start, read)
        self._check(for_all, has_file=has_file)
        self._all = for_all
        for name, own in tuple(self._models.items()):
            self._put(name, changed(own, for_all, {}))

    def _put(self, model: str, setting: TraceSetting) -> None:
        if setting.specified:
            self._models[model] = setting
        else:
            self._models.pop(model, None)

    def _check(self, setting: TraceSetting, *, has_file: bool) -> None:
        """Raises InvalidArgument, with Triton's message, for invalid settings. Settings under which
        nothing is traced are not checked.
        """
        if not setting.on:
            return
        reason = ""
        if setting.trace_rate == 0:
            reason = "sample rate must be non-zero"
        elif self._mode == "triton" and not has_file:
            reason = "trace file name is not given"
        if reason:
            raise InvalidArgument(f"Attempting to set invalid trace setting :{reason}")


def read_changes(changes: Mapping[str, SettingValue | None], mode: Mode) -> dict[str, object]:
    """Parses settings from a client. Raises InvalidArgument for invalid settings, and Unsupported for
    settings that cannot change after the server has started.
    """
    read: dict[str, object] = {}
    for name, value in changes.items():
        if name == "trace_file":
            raise Unsupported("trace file location can not be updated through network protocol")
        if name == "trace_mode":
            if value == mode:  # unchanged: clients may send back all settings
                continue
            raise Unsupported(
                "the trace mode cannot change while the server runs: start it with --trace-config mode=..."
            )
        if name not in CHANGEABLE:
            raise InvalidArgument(
                f"unknown trace setting '{name[:256]}', expected one of {', '.join(CHANGEABLE)}"
            )
        if value is None:
            read[name] = None
        elif name == "trace_level":
            read[name] = read_levels([value] if isinstance(value, str) else value, mode)
        else:
            read[name] = read_number(name, value)
    return read


def read_levels(names: list[str], mode: Mode) -> tuple[Level, ...]:
    """Parses trace levels. Raises InvalidArgument for an unknown level, an empty list, OFF together with
    another level, and TENSORS in the mode opentelemetry.
    """
    if "OFF" in names:
        if len(names) > 1:
            raise InvalidArgument("Expect only one trace level 'OFF' is specified")
        return ()
    for name in names:
        if name not in LEVELS:
            raise InvalidArgument(f"unknown trace level '{name[:256]}', expected OFF, TIMESTAMPS or TENSORS")
    if not names:
        raise InvalidArgument(
            "'trace_level' is empty: give OFF, TIMESTAMPS or TENSORS, or null for the global setting"
        )
    if "TENSORS" in names and mode == "opentelemetry":
        raise InvalidArgument("the trace level TENSORS needs mode=triton: spans carry no tensors")
    return tuple(level for level in LEVELS if level in names)


def read_number(name: str, value: SettingValue) -> int:
    """Parses a numeric setting. Raises InvalidArgument, with Triton's message, if the value is not valid."""
    if not isinstance(value, str):
        raise InvalidArgument(f"expect only 1 value for '{name}'")
    if not re.fullmatch(r"\s*[-+]?[0-9]+\s*", value, re.ASCII):
        raise InvalidArgument(f"Unable to parse '{name}', got: {value[:256]}")
    number = int(value[:256])
    low, high = _RANGES[name]
    if number < low and low == -1:
        raise InvalidArgument(f"Unable to parse '{name}'. Expecting value >= -1, got: {number}")
    if not low <= number <= high:
        raise InvalidArgument(
            f"Unable to parse '{name}', value is out of range [ {low}, {high} ], got: {number}"
        )
    return number


_GLOBAL: Final = ("level", "rate", "count", "mode")
_TRITON: Final = ("file", "log-frequency")
_SPANS: Final = ("url", "resource", "bsp_max_queue_size", "bsp_schedule_delay", "bsp_max_export_batch_size")
#: The default URL of an OpenTelemetry collector; environment variables can set another.
DEFAULT_URL: Final = "http://localhost:4318/v1/traces"


class SpanOptions(Struct, frozen=True):
    """Options that say where and how spans are sent. For an option that is None, OpenTelemetry's environment
    variables or defaults apply.
    """

    url: str | None = None
    #: Attributes of the OpenTelemetry resource.
    resource: tuple[tuple[str, str], ...] = ()
    #: The maximum number of spans that wait to be sent.
    max_queue_size: int | None = None
    #: The time between sends in milliseconds.
    schedule_delay_ms: int | None = None
    #: The maximum number of spans per send.
    max_export_batch_size: int | None = None


class TraceConfig(Struct, frozen=True):
    """The configuration of tracing: where traces are written and, until a client changes the settings, which
    requests are traced.
    """

    levels: tuple[Level, ...] = ()
    rate: int = 1000
    count: int = -1
    mode: Mode = "triton"
    file: Path | None = None
    log_frequency: int = 0
    spans: SpanOptions = field(default_factory=SpanOptions)

    @property
    def setting(self) -> TraceSetting:
        return TraceSetting(self.levels, self.rate, self.count, self.log_frequency)


def parse_trace_config(texts: Sequence[str]) -> TraceConfig:
    """Parses settings such as "level=TIMESTAMPS", "triton,file=trace.json" or "opentelemetry,url=http://...".

    Raises InvalidArgument for unknown or contradictory settings.
    """
    given: dict[str, list[str]] = {}
    for text in texts:
        name, value = _split(text)
        given.setdefault(name, []).append(value)
    for name, values in given.items():
        if len(values) > 1 and name not in ("level", "opentelemetry,resource"):
            raise InvalidArgument(f"'{name}' is given {len(values)} times, expected once")
    one = {name: values[-1] for name, values in given.items()}
    mode = _mode(one.get("mode", "triton"))
    levels = read_levels(given["level"], mode) if "level" in given else ()
    file = one.get("triton,file", "")
    if levels and mode == "triton" and not file:
        raise InvalidArgument("a trace level needs a destination: triton,file=PATH, or mode=opentelemetry")
    spans = SpanOptions(
        one.get("opentelemetry,url"),
        tuple(_resource(value) for value in given.get("opentelemetry,resource", ())),
        _positive(one, "opentelemetry,bsp_max_queue_size"),
        _positive(one, "opentelemetry,bsp_schedule_delay"),
        _positive(one, "opentelemetry,bsp_max_export_batch_size"),
    )
    if (spans.max_export_batch_size or 512) > (spans.max_queue_size or 2048):
        raise InvalidArgument(
            "bsp_max_export_batch_size must not exceed bsp_max_queue_size (defaults: 512 and 2048)"
        )
    return TraceConfig(
        levels,
        read_number("trace_rate", one.get("rate", "1000")),
        read_number("trace_count", one.get("count", "-1")),
        mode,
        Path(file) if file else None,
        read_number("log_frequency", one.get("triton,log-frequency", "0")),
        spans,
    )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise InvalidArgument(f"'{text}' is not of the form SETTING=VALUE or MODE,SETTING=VALUE")
    name = name.strip()
    known = [*_GLOBAL, *(f"triton,{one}" for one in _TRITON), *(f"opentelemetry,{one}" for one in _SPANS)]
    if name not in known:
        close = nearest(name, known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of {'; '.join(known)}"
        raise InvalidArgument(f"unknown trace setting '{name}': {hint}")
    return name, value.strip()


def _mode(value: str) -> Mode:
    match value.lower():
        case "triton":
            return "triton"
        case "opentelemetry":
            return "opentelemetry"
    raise InvalidArgument(f"unknown trace mode '{value}', expected triton or opentelemetry")


def _resource(value: str) -> tuple[str, str]:
    key, equals, text = value.partition("=")
    if not equals or not key:
        raise InvalidArgument(
            f"'{value}' is not a resource attribute, expected opentelemetry,resource=KEY=VALUE"
        )
    return key, text


def _positive(given: dict[str, str], name: str) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    number = parse_whole(value, 1, 2**31 - 1)
    if number is None:
        raise InvalidArgument(f"'{name}' is '{value}', expected a number above 0")
    return number
