"""The findings of `backline doctor`. A finding says what was found, how severe it is, why it matters, and
what to do.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, TypeVar

Facts = TypeVar("Facts")


class Severity(StrEnum):
    """The severity of a finding. Only an ERROR makes the command fail."""

    OK = "ok"
    #: Something is worth knowing, but may be intended.
    NOTE = "note"
    #: The server works, but more slowly, less safely or less reliably than it could.
    WARNING = "warning"
    #: Something does not work, or anyone may change what the server serves.
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Repair:
    """A change that `--fix` makes to a file or folder: setting the permissions `mode`, or removing it."""

    action: Literal["permit", "remove"]
    path: Path
    mode: int = 0

    def __str__(self) -> str:
        if self.action == "permit":
            return f"chmod {self.mode:o} {self.path}"
        return f"remove {self.path}"

    def apply(self) -> None:
        """Makes the change. Raises OSError if the change fails."""
        if self.action == "permit":
            self.path.chmod(self.mode)
        elif self.path.is_dir() and not self.path.is_symlink():
            shutil.rmtree(self.path)
        else:
            self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of a check.

    `what` says what was found, in one line. Unless the severity is OK, `why` says why the finding matters,
    and `advice` says what to do. `repair` is set if `--fix` can follow the advice.
    """

    severity: Severity
    what: str
    why: str = ""
    advice: str = ""
    repair: Repair | None = None


def ok(what: str) -> Finding:
    return Finding(Severity.OK, what)


def note(what: str, why: str, advice: str) -> Finding:
    return Finding(Severity.NOTE, what, why, advice)


def warning(what: str, why: str, advice: str, repair: Repair | None = None) -> Finding:
    return Finding(Severity.WARNING, what, why, advice, repair)


def error(what: str, why: str, advice: str, repair: Repair | None = None) -> Finding:
    return Finding(Severity.ERROR, what, why, advice, repair)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A finding, the check that produced it, and the group of that check."""

    group: str
    check: str
    finding: Finding

    def document(self) -> dict[str, Any]:
        """Returns the diagnosis as a JSON object."""
        finding = self.finding
        return {
            "group": self.group,
            "check": self.check,
            "severity": finding.severity.value,
            "what": finding.what,
            "why": finding.why,
            "advice": finding.advice,
            "fix": None if finding.repair is None else str(finding.repair),
        }


def diagnose(
    group: str, checks: Mapping[str, Callable[[Facts], Iterable[Finding]]], facts: Facts
) -> list[Diagnosis]:
    """Applies the checks of a group to the facts, and returns their findings."""
    return [Diagnosis(group, name, finding) for name, check in checks.items() for finding in check(facts)]
