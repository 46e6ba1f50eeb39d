"""Every scenario on Backline, against what was recorded of Triton, field by field."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from docs.pages import table
from scenarios.differences import DIFFERENCES, gone, unlisted
from scenarios.runner import compare, recorded, run
from scenarios.scenario import Scenario
from scenarios.servers import backline
from scenarios.session import Server
from scenarios.themes import MODELS, SCENARIOS

PAGE = "docs/differences-from-triton.md"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server with all models."""
    with backline(tmp_path_factory.mktemp("scenarios"), MODELS) as running:
        yield running


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.theme}: {scenario.name}")
def test_backline_answers_as_triton_does(scenario: Scenario, server: Server) -> None:
    deviations = list(compare(recorded(scenario.theme)[scenario.name], run(scenario, server)))

    assert unlisted(scenario, deviations) == [], "they differ"
    assert gone(scenario, deviations) == [], "these are listed as differences, but differ no longer"


def test_every_recording_has_its_scenario() -> None:
    names = {(scenario.theme, scenario.name) for scenario in SCENARIOS}

    assert {(theme, name) for theme in {theme for theme, _ in names} for name in recorded(theme)} == names


def test_every_difference_names_scenarios_that_there_are() -> None:
    titles = {scenario.title for scenario in SCENARIOS} | {scenario.name for scenario in SCENARIOS}

    assert [title for difference in DIFFERENCES for title in difference.scenarios if title not in titles] == []


def test_the_page_tells_every_difference() -> None:
    assert {row["difference"] for row in table(PAGE, "difference")} == {difference.reason for difference in DIFFERENCES}
