"""What a scenario is: a short function that asks a server's models something, and the ways it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from scenarios.session import Session

#: What a scenario saw: plain data that JSON can hold.
Seen: TypeAlias = Any
Run: TypeAlias = Callable[[Session], Seen]


@dataclass(frozen=True, slots=True)
class Scenario:
    """`run` asks over `way` and returns what it saw; `watched` are models of which the statistics are compared besides those it asks."""

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
    """Makes a function a scenario, once for each way: `http`, `grpc` or `stream`. Its name is the title, its module the theme."""

    def add(run: Run) -> Run:
        theme = run.__module__.rpartition(".")[2]
        SCENARIOS.extend(Scenario(theme, run.__name__, way, run, watch) for way in ways)
        return run

    return add
