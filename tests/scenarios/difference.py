"""A difference between Triton and Backline: where it shows, in which values, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from scenarios.runner import Deviation
from scenarios.scenario import Scenario


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference in the fields that match one of `paths`, in each of `scenarios` (title, or title and way),
    or somewhere in the themes that a pattern matches.

    `holds` says whether Triton's and Backline's values show this difference. `reason` is a row of a table
    in the documentation. `chance` marks a race in Triton: a recording may not show the
    difference.
    """

    reason: str
    scenarios: tuple[str, ...]
    paths: tuple[str, ...]
    holds: Callable[[Any, Any], bool]
    chance: bool = False

    def names(self, scenario: Scenario) -> bool:
        return scenario.title in self.scenarios or scenario.name in self.scenarios

    def applies(self, scenario: Scenario) -> bool:
        return self.names(scenario) or any(fnmatchcase(scenario.theme, one) for one in self.scenarios)

    def covers(self, deviation: Deviation) -> bool:
        matches = any(fnmatchcase(deviation.path, path) for path in self.paths)
        return matches and self.holds(deviation.triton, deviation.backline)


def unlisted(table: Sequence[Difference], scenario: Scenario, deviations: list[Deviation]) -> list[Deviation]:
    """The deviations that no difference of the table covers."""
    listed = [difference for difference in table if difference.applies(scenario)]
    return [
        deviation
        for deviation in deviations
        if not any(difference.covers(deviation) for difference in listed)
    ]


def gone(table: Sequence[Difference], scenario: Scenario, deviations: list[Deviation]) -> list[Difference]:
    """The differences that the table lists for the scenario, and that it no longer shows."""
    listed = [difference for difference in table if difference.names(scenario) and not difference.chance]
    return [
        difference
        for difference in listed
        if not any(difference.covers(deviation) for deviation in deviations)
    ]


def words(triton: Any, backline: Any) -> bool:
    """Backline's message has all of Triton's words in order, or the other way round."""
    if not isinstance(triton, str) or not isinstance(backline, str):
        return False
    shorter, longer = sorted((_words(triton), _words(backline)), key=len)
    rest = iter(longer)
    return all(word in rest for word in shorter)


def _words(text: str) -> list[str]:
    return text.replace("[request id: <id_unknown>] ", "").replace(",", " ").replace(".", " ").split()


def goes_on(triton: Any, backline: Any) -> bool:
    """Backline's text begins with Triton's, and says more."""
    if not isinstance(triton, str) or not isinstance(backline, str):
        return False
    return bool(triton) and backline.startswith(triton.rstrip(".;\n"))


def less(triton: Any, backline: Any) -> bool:
    """Backline's count is lower."""
    return (backline or 0) < (triton or 0)


def more(triton: Any, backline: Any) -> bool:
    """Backline's count is higher."""
    return (backline or 0) > (triton or 0)


def any_value(triton: Any, backline: Any) -> bool:
    """Accepts anything: the field follows from another difference of the scenario."""
    return True


def is_gone(triton: Any, backline: Any) -> bool:
    """Backline has no such field."""
    return backline is None


def is_new(triton: Any, backline: Any) -> bool:
    """Triton has no such field."""
    return triton is None


def became(triton: Any, backline: Any) -> Callable[[Any, Any], bool]:
    """Exactly these two values."""
    return lambda one, other: (one, other) == (triton, backline)
