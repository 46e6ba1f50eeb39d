"""What a row of the suite is: a sentence, its level, what it rests on, and the code that checks it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oip_conformance.specification import Citation
    from oip_conformance.target import Target

#: Raises Failure, or returns what it has observed.
Check = Callable[["Target"], str | None]


class Level(enum.StrEnum):
    """How much a row weighs."""

    #: The specification demands it, or it cannot be meant otherwise: a server that fails is not conforming.
    MUST = "MUST"
    #: The specification recommends it, or clients rely on it.
    SHOULD = "SHOULD"
    #: The specification is silent: the row reports which of the known behaviours the server has.
    OBSERVED = "OBSERVED"


class Verdict(enum.StrEnum):
    """The result of a row."""

    PASSED = "passed"
    FAILED = "failed"
    OBSERVED = "observed"
    #: The server lacks a model, or does not offer the profile.
    NOT_RUN = "not run"


class Failure(Exception):
    """The server's answer is not what a row expects.

    Args:
        expected: what the row expects, in words.
        got: what came instead.
        hint: a guess at the cause, such as a misspelt key.
    """

    def __init__(self, expected: str, got: object, hint: str = "") -> None:
        self.expected = expected
        self.got = got if isinstance(got, str) else repr(got)
        self.hint = hint
        super().__init__(f"expected {expected}, got {self.got}")


class NoAnswer(Failure):
    """The server did not answer within the row's time, or closed the connection without an answer."""


class NotRun(Exception):
    """The row cannot be run against this server, for a reason that is not a failure."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row."""

    id: str
    sentence: str
    level: Level
    #: The sentence of the specification, or None for a row about what the specification is silent on.
    citation: Citation | None
    profile: str
    #: The suite's models that the row calls.
    models: tuple[str, ...]
    check: Check


@dataclass(slots=True)
class Area:
    """The rows about one subject, in the order in which they are read and run."""

    name: str
    profile: str
    rows: list[Row] = field(default_factory=list)

    def row(
        self, id: str, level: Level, citation: Citation | None, *models: str
    ) -> Callable[[Callable[[Target], Any]], Callable[[Target], Any]]:
        """Makes a row of a function whose docstring is the row's sentence."""

        def add(check: Callable[[Target], Any]) -> Callable[[Target], Any]:
            sentence = " ".join((check.__doc__ or "").split())
            self.add(id, level, citation, sentence, check, *models)
            return check

        return add

    def add(self, id: str, level: Level, citation: Citation | None, sentence: str, check: Check, *models: str) -> None:
        """Adds a row; for rows that differ in one word, such as a datatype."""
        if not sentence.endswith(".") or (citation is None and level is not Level.OBSERVED):
            raise ValueError(f"row {id}: a row has a sentence, and a citation unless it only observes")
        self.rows.append(Row(f"{self.name}.{id}", sentence, level, citation, self.profile, models, check))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)
