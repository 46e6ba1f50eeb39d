"""Every scenario on Backline, compared field by field with the recording of Triton."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from docs.pages import table
from scenarios.differences import DIFFERENCES, gone, unlisted
from scenarios.runner import compare, recorded, run
from scenarios.scenario import Scenario
from scenarios.servers import Setup, backline
from scenarios.session import Server
from scenarios.themes import SCENARIOS, setup_of

PAGE = "docs/differences-from-triton.md"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Setup], Server]]:
    """Returns the server of a setup, started on first use."""
    running: dict[Setup, Server] = {}
    with ExitStack() as stack:

        def server(setup: Setup) -> Server:
            if setup not in running:
                running[setup] = stack.enter_context(backline(tmp_path_factory.mktemp("scenarios"), setup))
            return running[setup]

        yield server


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.theme}: {scenario.name}")
def test_backline_answers_as_triton_does(scenario: Scenario, servers: Callable[[Setup], Server]) -> None:
    deviations = list(
        compare(recorded(scenario.theme)[scenario.name], run(scenario, servers(setup_of(scenario))))
    )

    assert unlisted(scenario, deviations) == [], "they differ"
    assert gone(scenario, deviations) == [], "listed as differences, but no longer different"


def test_every_recording_has_a_scenario() -> None:
    names = {(scenario.theme, scenario.name) for scenario in SCENARIOS}

    assert {(theme, name) for theme in {theme for theme, _ in names} for name in recorded(theme)} == names


def test_every_difference_names_existing_scenarios() -> None:
    titles = {scenario.title for scenario in SCENARIOS} | {scenario.name for scenario in SCENARIOS}

    assert [
        title for difference in DIFFERENCES for title in difference.scenarios if title not in titles
    ] == []


def test_the_page_lists_every_difference() -> None:
    assert {row["difference"] for row in table(PAGE, "difference")} == {
        difference.reason for difference in DIFFERENCES
    }
