"""A scenario: a short function that sends requests to a server's models, and the ways it sends them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from scenarios.session import Session

#: What a scenario returns: plain JSON data.
Seen: TypeAlias = Any
Run: TypeAlias = Callable[[Session], Seen]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A function `run` that sends requests over `way` and returns what it saw.

    Statistics are compared for the models it calls and for those in `watched`.
    """

    theme: str
    title: str
    way: str
    run: Run
    watched: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.title} [{self.way}]"


SCENARIOS: list[Scenario] = []


def scenario(*ways: str, watch: tuple[str, ...] = ()) -> Callable[[Run], Run]:
    """Declares a scenario for each of `ways`: `http`, `grpc` or `stream`.

    The function's name is the title, its module the theme, with the folder if it is in one.
    """

    def add(run: Run) -> Run:
        theme = run.__module__.removeprefix("scenarios.").replace(".", "/")
        SCENARIOS.extend(Scenario(theme, run.__name__, way, run, watch) for way in ways)
        return run

    return add
