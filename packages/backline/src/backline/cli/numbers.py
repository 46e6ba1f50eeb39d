"""Types for options whose values are numbers. The error for an invalid value gives the allowed range."""

from __future__ import annotations

import re
from math import isfinite
from typing import Any, ClassVar

import click


def _allowed(kind: click.IntRange | click.FloatRange) -> str:
    """Describes the range of a type in words that continue "a number", such as " from 1 to 9"."""
    least = "" if kind.min is None else f" {'above' if kind.min_open else 'of at least'} {kind.min}"
    most = "" if kind.max is None else f" {'below' if kind.max_open else 'of at most'} {kind.max}"
    if least and most and not (kind.min_open or kind.max_open):
        return f" from {kind.min} to {kind.max}"
    return least + (" and" if least and most else "") + most


class WholeNumber(click.IntRange):
    """An integer within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            return self.fail(f"{str(value)!r} is not a whole number{_allowed(self)}.", param, ctx)


class Number(click.FloatRange):
    """A finite number within a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = super().convert(value, param, ctx)
            if not isfinite(number):
                raise click.BadParameter("")
            return number
        except click.BadParameter:
            return self.fail(f"{str(value)!r} is not a number{_allowed(self)}.", param, ctx)


class DurationType(click.ParamType):
    """A positive duration with a unit, such as 20ms. It is converted to seconds."""

    name = "duration"
    _UNITS: ClassVar = {"us": 1e-6, "ms": 1e-3, "s": 1.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(us|ms|s)\s*", str(value))
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is not a duration above 0 such as 20ms or 1.5s", param, ctx)
        return float(found[1]) * self._UNITS[found[2]]


class Numbers(click.ParamType):
    """A list of positive numbers, separated by commas."""

    name = "numbers"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(self._kind(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) <= 0:
            self.fail(f"{value!r} is not a list of positive numbers such as 1,2,4", param, ctx)
        return numbers
