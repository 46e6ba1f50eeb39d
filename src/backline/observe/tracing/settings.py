"""What is traced: settings of all models and of single ones, in Triton's words and by its rules."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

from backline.engine.errors import InvalidArgument, Unsupported
from backline.engine.tracing import SettingValue

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


@dataclass(slots=True, eq=False)
class TraceSetting:
    """The settings of one model, or of all that have none of their own; also which of the next requests are traced.

    Of every `trace_rate` requests the last one is traced, until `trace_count` were; -1 is any number. `specified` are the names of those
    settings that are its own.
    """

    trace_level: tuple[Level, ...] = ()
    trace_rate: int = 1000
    trace_count: int = -1
    log_frequency: int = 0
    specified: frozenset[str] = frozenset()
    #: Requests that were looked at, and traces that are complete.
    seen: int = 0
    collected: int = 0

    @property
    def on(self) -> bool:
        return bool(self.trace_level)

    def sample(self, *, forced: bool = False) -> bool:
        """Whether the next request is traced; one that is `forced` always is, if any are."""
        if not self.on:
            return False
        hit = False
        if self.trace_rate and (self.trace_count or forced):
            self.seen += 1
            hit = self.seen % self.trace_rate == 0 and self.trace_count != 0
            if hit and self.trace_count > 0:
                self.trace_count -= 1
        return hit or forced

    def told(self) -> dict[str, SettingValue]:
        """As clients see it."""
        levels: list[str] = [level for level in LEVELS if level in self.trace_level]
        return {"trace_level": levels or ["OFF"], **{name: str(getattr(self, name)) for name in _RANGES}}


def changed(
    current: TraceSetting | None, fallback: TraceSetting, changes: Mapping[str, object]
) -> TraceSetting:
    """The settings after `changes`, by name; None has one be that of the fallback, as is each that was never set."""
    before = current.specified if current is not None else frozenset()
    cleared = {name for name, value in changes.items() if value is None}
    values = {name: getattr(current, name) for name in before - cleared}
    values |= {name: value for name, value in changes.items() if value is not None}
    return replace(fallback, **values, specified=frozenset(values), seen=0, collected=0)


class SettingTable:
    """The settings of the start, those of all models, and those of single models where they differ.

    What a model does not set itself follows what is set for all; what is not set for all is as at the start.
    """

    def __init__(self, start: TraceSetting, mode: Mode) -> None:
        self._start = start
        self._mode = mode
        self._all = replace(start)  # whose count goes down
        self._models: dict[str, TraceSetting] = {}

    @property
    def any_on(self) -> bool:
        return self._all.on or any(setting.on for setting in self._models.values())

    def of(self, model: str) -> TraceSetting:
        return self._models.get(model, self._all)

    def update(self, model: str, changes: Mapping[str, SettingValue | None], *, has_file: bool) -> None:
        """See TraceControl. Nothing is changed when it raises InvalidArgument or Unsupported."""
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
        """Triton's words; only what is off may be anything."""
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
    """The values of settings that a client gives. Raises InvalidArgument, and Unsupported for what only the start decides."""
    read: dict[str, object] = {}
    for name, value in changes.items():
        if name == "trace_file":
            raise Unsupported("trace file location can not be updated through network protocol")
        if name == "trace_mode":
            raise Unsupported(
                "the trace mode cannot be changed while the server runs: start it with --trace-config mode=..."
            )
        if name not in CHANGEABLE:
            raise InvalidArgument(
                f"unknown trace setting '{name[:256]}'; those that can be changed are {', '.join(CHANGEABLE)}"
            )
        if value is None:
            read[name] = None
        elif name == "trace_level":
            read[name] = read_levels([value] if isinstance(value, str) else value, mode)
        else:
            read[name] = read_number(name, value)
    return read


def read_levels(names: list[str], mode: Mode) -> tuple[Level, ...]:
    """Raises InvalidArgument for what is no level, and for tensors in spans."""
    if "OFF" in names:
        if len(names) > 1:
            raise InvalidArgument("Expect only one trace level 'OFF' is specified")
        return ()
    for name in names:
        if name not in LEVELS:
            raise InvalidArgument(f"unknown trace level '{name[:256]}', expected OFF, TIMESTAMPS or TENSORS")
    if not names:
        raise InvalidArgument(
            "'trace_level' names no level: give OFF, TIMESTAMPS, TENSORS, or nothing at all to have that of all models"
        )
    if "TENSORS" in names and mode == "opentelemetry":
        raise InvalidArgument("the trace level TENSORS is for the mode triton: spans have no tensors")
    return tuple(level for level in LEVELS if level in names)


def read_number(name: str, value: SettingValue) -> int:
    """Raises InvalidArgument, in Triton's words."""
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
