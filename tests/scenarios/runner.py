"""Runs scenarios and compares the results, field by field, with the recordings of Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from scenarios.scenario import Scenario
from scenarios.session import Server, Session

RECORDED = Path(__file__).with_name("recorded")


class Deviation(NamedTuple):
    """A differing field: its path, and its value on each side (None if absent)."""

    path: str
    triton: Any
    backline: Any


def run(scenario: Scenario, server: Server) -> dict[str, Any]:
    """The answers of a scenario, its models' statistics, and what it returns. Exceptions pass through."""
    session = Session(server, scenario.title, scenario.way, scenario.watched)
    try:
        seen = scenario.run(session)
        answers, counted = session.finish()
    finally:
        session.close()
    result = {"answers": answers, "statistics": counted, **({} if seen is None else {"seen": seen})}
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]  # as JSON, like a recording


def compare(triton: Any, backline: Any, path: str = "") -> Iterator[Deviation]:
    """Every field that differs."""
    if isinstance(triton, dict) and isinstance(backline, dict):
        for name in sorted(triton.keys() | backline.keys()):
            yield from compare(triton.get(name), backline.get(name), f"{path}.{name}".lstrip("."))
    elif isinstance(triton, list) and isinstance(backline, list) and len(triton) == len(backline):
        for number, (one, other) in enumerate(zip(triton, backline, strict=True)):
            yield from compare(one, other, f"{path}.{number}".lstrip("."))
    elif triton != backline:
        yield Deviation(path, triton, backline)


def recorded(theme: str) -> dict[str, Any]:
    """Triton's answers by scenario name, for one theme; empty if never recorded."""
    file = RECORDED / f"{theme}.json"
    return json.loads(file.read_text()) if file.exists() else {}  # type: ignore[no-any-return]


def record(theme: str, results: dict[str, Any]) -> None:
    """Writes a theme's recording."""
    lines = [f"{json.dumps(name)}: {json.dumps(result)}" for name, result in sorted(results.items())]
    (RECORDED / theme).parent.mkdir(exist_ok=True)
    (RECORDED / f"{theme}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
