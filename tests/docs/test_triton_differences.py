"""The list of differences from Triton 2.51 in docs/from-triton.md, and how many exchanges are compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("tritonclient")
from cli.triton_command_lines.test_command_lines import OTHER_TEXTS
from dialects.triton_forms.test_forms import ADDITIONS, DIFFERENCES
from docs.pages import table
from repository.configuration.test_triton import OTHER_REFUSALS
from scenarios.drop_in.differences import DROP_IN

TESTS = Path(__file__).parents[1]


def rows() -> list[str]:
    return [row["difference"] for row in table("docs/from-triton.md", "difference")]


def exchanges(seen: Any) -> int:
    """How many answers there are at any depth of the recording of a scenario."""
    if isinstance(seen, list):
        return sum(map(exchanges, seen))
    if not isinstance(seen, dict):
        return 0
    return 1 if seen.keys() & {"status", "code"} else sum(map(exchanges, seen.values()))


def counted() -> dict[str, int]:
    """The exchanges in each set of recordings that `backline tritonserver` is compared with."""

    def recorded(path: str) -> Any:
        return json.loads((TESTS / path).read_text())

    scenarios = [recorded(f"{file}") for file in (TESTS / "scenarios/recorded/drop_in").glob("*.json")]
    return {
        "scenarios": sum(
            exchanges(one.get("seen")) + len(one["answers"]) for theme in scenarios for one in theme.values()
        ),
        "requests and loads": len(recorded("dialects/triton_forms/triton_2_51.json")),
        "configurations": len(recorded("repository/configuration/triton_2_51.json")),
        "command lines": len(recorded("cli/triton_command_lines/triton_2_51.json")["lines"]),
    }


def test_the_page_lists_every_difference_and_no_other() -> None:
    reasons = {
        reason for *_, reason in (*DIFFERENCES.values(), *ADDITIONS.values(), *OTHER_REFUSALS.values())
    }

    assert set(rows()) == reasons | set(OTHER_TEXTS.values()) | {one.reason for one in DROP_IN}


def test_there_are_few_differences_in_many_exchanges() -> None:
    print(counted(), sum(counted().values()), rows())

    assert sum(counted().values()) > 1200
    assert len(rows()) <= 25
