"""Prints what `backline doctor` found."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Sequence
from itertools import groupby

import click

from backline.cli.doctor.finding import Diagnosis, Severity
from backline.engine.names import printable

_COLOURS = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "red"}
_PLURALS = {Severity.ERROR: "errors", Severity.WARNING: "warnings", Severity.NOTE: "notes"}
_WIDTH = 100
_INDENT = " " * 10


def print_diagnoses(diagnoses: Sequence[Diagnosis], *, verbose: bool) -> None:
    """Prints findings by group, and a summary. Without `verbose`, passed checks are only counted."""
    for group, of_group in groupby(diagnoses, key=lambda one: one.group):
        members = list(of_group)
        passed = sum(one.finding.severity is Severity.OK for one in members)
        click.secho(f"{group} ({passed} of {len(members)} ok)", bold=True)
        for one in members:
            if verbose or one.finding.severity is not Severity.OK:
                _print(one)
    counts = Counter(one.finding.severity for one in diagnoses)
    parts = [_counted(counts[severity], severity) for severity in _PLURALS if counts[severity]]
    click.echo(f"\n{', '.join(parts) or 'Nothing is wrong'}; {counts[Severity.OK]} checks passed")


def _print(diagnosis: Diagnosis) -> None:
    finding = diagnosis.finding
    label = click.style(f"{finding.severity.value:7}", fg=_COLOURS[finding.severity])
    lines = _wrapped(printable(finding.what))
    click.echo(f"  {label} {lines[0]}")
    for line in lines[1:]:
        click.echo(f"{_INDENT}{line}")
    for text in (finding.why, finding.advice and f"-> {finding.advice}"):
        for line in _wrapped(printable(text)) if text else ():
            click.echo(f"{_INDENT}{line}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH - len(_INDENT), break_long_words=False, break_on_hyphens=False) or [""]


def _counted(count: int, severity: Severity) -> str:
    return f"{count} {_PLURALS[severity] if count > 1 else severity.value}"
