"""Reports of a run: a table for the terminal, JSON, JUnit, and a badge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from oip_conformance.row import Level, Row, Verdict
from oip_conformance.runner import Result, Run

_MARKS = {Verdict.PASSED: "ok", Verdict.FAILED: "FAILED", Verdict.OBSERVED: "-", Verdict.NOT_RUN: "not run"}
_COLOURS = {Verdict.PASSED: "32", Verdict.FAILED: "31", Verdict.OBSERVED: "36", Verdict.NOT_RUN: "33"}


def line(result: Result, colour: bool) -> str:
    """The result's line of the table."""
    mark = f"{_MARKS[result.verdict]:<7}"
    if colour:
        mark = f"\033[{_COLOURS[result.verdict]}m{mark}\033[0m"
    note = f" [{result.note}]" if result.note else ""
    return f"{mark} {result.row.level:<8} {result.row.id:<32} {result.row.sentence}{note}"


def failure(result: Result) -> str:
    """What a person needs to mend a failure: the sentences, the last request and its answer, and what was expected."""
    row = result.row
    lines = [f"{row.id} ({row.level}): {row.sentence}"]
    if row.citation:
        lines += [f"  rests on  {row.citation}", f"            {row.citation.sentence!r}"]
    if result.exchanges:
        request, answer = result.exchanges[-1]
        lines += [f"  request   {_short(request, 1500)}", f"  answer    {_short(answer, 500)}"]
    lines += [f"  expected  {result.expected}", f"  got       {_short(result.got, 500)}"]
    if result.hint:
        lines.append(f"  perhaps   {result.hint}")
    return "\n".join(lines)


def _short(text: str, length: int) -> str:
    text = text.strip().replace("\n", "\n            ")
    return text if len(text) <= length else f"{text[:length]}... ({len(text)} characters)"


def explain(row: Row, result: Result | None) -> str:
    """All about a row, with its requests and answers if it was run."""
    lines = [f"{row.id}", f"  {row.sentence}", f"  level     {row.level}, profile {row.profile}"]
    if row.citation:
        lines += [f"  rests on  {row.citation.url}", f"            {row.citation.sentence!r}"]
    else:
        lines.append("  rests on  nothing: the specification is silent")
    if row.models:
        lines.append(f"  models    {', '.join(row.models)}")
    if result is None:
        return "\n".join([*lines, "  Give the URL of a server to see the row's requests and answers."])
    for request, answer in result.exchanges:
        lines += ["", f"$ {request}", answer.strip()]
    lines += ["", f"{result.verdict}{': ' + result.note if result.note else ''}"]
    if result.verdict is Verdict.FAILED:
        lines += [f"  expected  {result.expected}", f"  got       {result.got}"]
        lines += [f"  perhaps   {result.hint}"] if result.hint else []
    return "\n".join(lines)


def summary(run: Run) -> str:
    """The counts of a run in a few lines."""
    counts = run.count()
    failed = f"{len(run.failures(Level.MUST))} MUST, {len(run.failures(Level.SHOULD))} SHOULD"
    first = f"{run.server} at {run.url}: {counts[Verdict.PASSED]} passed, {counts[Verdict.FAILED]} failed ({failed})"
    lines = [f"{first}, {counts[Verdict.OBSERVED]} observed, {counts[Verdict.NOT_RUN]} not run"]
    if run.missing:
        lines.append(f"not offered: {', '.join(run.missing)}")
    if run.stopped:
        lines.append(f"incomplete: {run.stopped}")
    return "\n".join(lines)


def to_json(run: Run) -> dict[str, Any]:
    """The run as a document, from which the matrix is made."""
    return {
        "server": run.server,
        "url": run.url,
        "date": run.date,
        "offered": run.offered,
        "missing": run.missing,
        "stopped": run.stopped,
        "rows": [
            {
                "id": result.row.id,
                "sentence": result.row.sentence,
                "level": result.row.level,
                "profile": result.row.profile,
                "citation": result.row.citation.url if result.row.citation else None,
                "verdict": result.verdict,
                "note": result.note,
                "expected": result.expected,
                "got": result.got,
                "hint": result.hint,
                "seconds": round(result.seconds, 3),
                "exchanges": [list(exchange) for exchange in result.exchanges[-3:]]
                if result.verdict is Verdict.FAILED
                else [],
            }
            for result in run.results
        ],
    }


def write_json(run: Run, path: Path) -> None:
    path.write_text(json.dumps(to_json(run), indent=1) + "\n")


def write_junit(run: Run, path: Path) -> None:
    """The run as JUnit's XML: a failed SHOULD row is a skipped test with a message."""
    suite = ElementTree.Element("testsuite", name=f"oip-conformance: {run.server}", tests=str(len(run.results)))
    for result in run.results:
        row = result.row
        case = ElementTree.SubElement(
            suite, "testcase", classname=row.id.split(".")[0], name=row.id, time=f"{result.seconds:.3f}"
        )
        if result.verdict is Verdict.FAILED and row.level is not Level.SHOULD:
            ElementTree.SubElement(case, "failure", message=result.expected).text = _printable(failure(result))
        elif result.verdict is Verdict.NOT_RUN or result.verdict is Verdict.FAILED:
            message = result.note or f"{row.level}: expected {result.expected}, got {result.got}"
            ElementTree.SubElement(case, "skipped", message=_printable(message))
        elif result.note:
            ElementTree.SubElement(case, "system-out").text = _printable(result.note)
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)


def _printable(text: str) -> str:
    """The text without the control characters that XML cannot have."""
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def write_badge(run: Run, path: Path) -> None:
    """A badge in SVG: how many of the MUST rows that were run have passed."""
    must = [r for r in run.results if r.row.level is Level.MUST and r.verdict is not Verdict.NOT_RUN]
    passed = sum(result.verdict is Verdict.PASSED for result in must)
    colour = "#2e7d32" if passed == len(must) and not run.stopped else "#c62828"
    text = escape(f"{passed} of {len(must)} MUST")
    left, right = 110, 14 + 7 * len(text)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img" '
        f'aria-label="oip-conformance: {text}"><rect width="{left}" height="20" fill="#444"/>'
        f'<rect x="{left}" width="{right}" height="20" fill="{colour}"/>'
        '<g fill="#fff" font-family="sans-serif" font-size="11" text-anchor="middle">'
        f'<text x="{left / 2}" y="14">oip-conformance</text>'
        f'<text x="{left + right / 2}" y="14">{text}</text></g></svg>\n'
    )
