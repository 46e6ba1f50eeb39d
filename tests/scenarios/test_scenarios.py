"""Every scenario on Backline, compared field by field with the recording of Triton."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import filter as matching
from typing import Any

import pytest
from onnx import TensorProto, helper

from docs.pages import table
from scenarios.difference import gone, unlisted
from scenarios.differences import DIFFERENCES
from scenarios.drop_in.differences import DROP_IN
from scenarios.drop_in.setup import DROP_IN as DROP_IN_SETUP
from scenarios.exchanges import Exchanges
from scenarios.runner import compare, recorded, run
from scenarios.scenario import Scenario
from scenarios.servers import Setup, backline
from scenarios.session import Server
from scenarios.themes import SCENARIOS, differences_of, setup_of
from support import models

PAGE = "docs/differences-from-triton.md"
#: The drop-in command's scenarios that have run, and the reasons of the differences that they showed.
RAN: set[Scenario] = set()
SHOWN: set[str] = set()


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

    listed = differences_of(scenario)
    if scenario.theme.startswith("drop_in/"):
        RAN.add(scenario)
        applying = [difference for difference in listed if difference.applies(scenario)]
        SHOWN.update(one.reason for one in applying if any(map(one.covers, deviations)))
    assert unlisted(listed, scenario, deviations) == [], "they differ"
    assert gone(listed, scenario, deviations) == [], "listed as differences, but no longer different"


def test_every_recording_has_a_scenario() -> None:
    names = {(scenario.theme, scenario.name) for scenario in SCENARIOS}

    assert {(theme, name) for theme in {theme for theme, _ in names} for name in recorded(theme)} == names


def test_every_difference_of_the_drop_in_command_shows() -> None:
    if {scenario for scenario in SCENARIOS if scenario.theme.startswith("drop_in/")} - RAN:
        pytest.skip("needs all scenarios of the drop-in command, which not all ran")

    assert {difference.reason for difference in DROP_IN} - SHOWN == set()


def test_every_difference_names_existing_scenarios() -> None:
    titles = {scenario.title for scenario in SCENARIOS} | {scenario.name for scenario in SCENARIOS}
    themes = {scenario.theme for scenario in SCENARIOS}

    assert [
        title
        for difference in (*DIFFERENCES, *DROP_IN)
        for title in difference.scenarios
        if title not in titles and not matching(themes, title)
    ] == []


def test_the_page_lists_every_difference() -> None:
    assert {row["difference"] for row in table(PAGE, "difference")} == {
        difference.reason for difference in DIFFERENCES
    }


def test_the_drop_in_command_is_compared_in_hundreds_of_exchanges() -> None:
    def exchanges(seen: Any) -> int:
        """How many answers there are at any depth."""
        if isinstance(seen, list):
            return sum(map(exchanges, seen))
        if not isinstance(seen, dict):
            return 0
        return 1 if seen.keys() & {"status", "code"} else sum(map(exchanges, seen.values()))

    themes = {scenario.theme for scenario in SCENARIOS if scenario.theme.startswith("drop_in/")}
    results = [result for theme in themes for result in recorded(theme).values()]

    assert len(results) > 60
    assert sum(exchanges(result.get("seen")) + len(result["answers"]) for result in results) >= 500


def test_an_onnx_model_answers_as_its_python_twin(servers: Callable[[Setup], Server]) -> None:
    """This is only tested here, because the Triton build that was recorded has no ONNX Runtime backend."""
    server = servers(DROP_IN_SETUP)
    samples = [("AUDIO", TensorProto.FLOAT, ["N", "samples"])]
    models.save(
        server.repository / "gain_onnx" / "1" / "model.onnx",
        [helper.make_node("Mul", ["AUDIO", "gain"], ["LOUDER"])],
        samples,
        [("LOUDER", *samples[0][1:])],
        [helper.make_tensor("gain", TensorProto.FLOAT, [1], [2.0])],
    )
    wire = Exchanges(server.http, server.grpc, {"gain_onnx": "gain"})
    body = {"inputs": [{"name": "AUDIO", "datatype": "FP32", "shape": [2, 2], "data": [1, 2.5, -3, 0]}]}

    assert wire.http("POST", "/v2/repository/models/gain_onnx/load", {}) == {"status": 200}
    twins = [wire.http("POST", f"/v2/models/{name}/infer", body) for name in ("gain_onnx", "gain")]

    assert json.dumps(twins[0]) == json.dumps(twins[1])
    assert twins[0]["body"]["outputs"][0]["data"] == [2, 5, -6, 0]
