"""The load and the report of the latency objective benchmark, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from harness.model import Model
from harness.open_loop import Fate, poisson
from harness.open_loop_h2 import H2Clients
from harness.overload_report import Report, Turn, outcome_of

from support import models
from support.server import ServerProcess, serve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("models")
    models.add1(repository)
    with serve(repository, repository.parent / "log") as running:
        yield running


def fates(server: ServerProcess, name: str, moments: list[float]) -> list[Fate]:
    async def main() -> list[Fate]:
        model = Model(name, Path(), "INPUT0", (1, 16), 0.01)
        clients = H2Clients(server.grpc_port, model.grpc_request(), connections=2)
        await clients.open()
        began = monotonic()
        await clients.send_at([began + moment for moment in moments])
        assert await clients.settle(20) == 0
        clients.close()
        return clients.fates.all

    return asyncio.run(main())


def test_calls_are_classified_by_status_and_timed_from_their_schedule(
    server: ServerProcess,
) -> None:
    moments = [number / 1000 for number in range(200)]
    answered = fates(server, "add1", moments)
    assert {fate.what for fate in answered} == {"OK"}
    assert len(answered) == 200
    assert all(fate.due <= fate.sent <= fate.ended for fate in answered)
    assert {fate.what for fate in fates(server, "nobody", moments[:3])} == {"status 5"}


def test_poisson_arrivals_have_the_right_rate_and_variance() -> None:
    gaps = np.diff(poisson(500.0, 20.0, seed=1))
    assert len(gaps) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def turn(*latencies: float, seconds: float = 1.0) -> Turn:
    return Turn([Fate("200", 0.0, 0.0, latency) for latency in latencies], 0, seconds)


def test_goodput_counts_answers_within_the_objective() -> None:
    outcomes = [
        Fate("200", 0.0, 0.01, 0.05),
        Fate("200", 0.0, 0.0, 0.2),
        Fate("503", 0.0, 0.0, 0.001),
        Fate("partial", 0.0, 0.0, 0.1),
    ]
    outcome = outcome_of([Turn(outcomes, lost=1, seconds=2.0)], objective=0.1)
    assert (outcome.offered, outcome.answered, outcome.goodput, outcome.refused) == (2.0, 1.0, 0.5, 0.5)
    assert outcome.others == {"partial": 1, "no answer": 1}


def test_rates_are_medians_over_turns_and_latencies_are_over_all_requests() -> None:
    outcome = outcome_of([turn(0.05, 0.05), turn(0.05), turn(*[0.07] * 5, 0.2)], objective=0.1)
    assert (outcome.answered, outcome.goodput, outcome.goodputs) == (2.0, 2.0, (1.0, 5.0))
    assert outcome.p50 == pytest.approx(70)


def test_the_page_states_which_claims_hold(tmp_path: Path) -> None:
    outcomes = {
        ("http", 1.1, "plain"): outcome_of([turn(*[0.09] * 100)], 0.1),
        ("http", 1.1, "objective"): outcome_of([turn(*[0.05] * 94)], 0.1),
    }
    report = Report(0.1, 2.0, 1, outcomes)
    assert [holds for holds, _ in report.claims("objective", [1.1])] == [False, True]
    report.write(
        tmp_path / "overload.md", about={"cores": "2"}, versions={}, tried=[], objective_mode="objective"
    )
    page = (tmp_path / "overload.md").read_text()
    assert "- **no**: http, 1.1 times: 94.0% of the best goodput (at least 95%)" in page
    assert "- yes: http, 1.1 times: p99 of the responses 50 ms (at most 100 ms)" in page
    assert (tmp_path / "overload.png").read_bytes().startswith(b"\x89PNG")
