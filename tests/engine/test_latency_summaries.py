"""Quantiles of latencies are those that Triton computes, over its window, in bounded memory."""

from __future__ import annotations

import random
from math import isnan

import pytest

from backline.engine.latency_summaries import LatencySummaries, LatencySummary
from backline.engine.statistics import ComputeTimes, ModelStatistics
from backline.engine.ticket import Ticket
from backline_client.values.messages import InferRequest

SECOND = 10**9
#: Triton rotates its five windows every 12 seconds.
SLOT = 12 * SECOND
QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)


def summary_of(microseconds: list[int], now: int = 0) -> LatencySummary:
    summary = LatencySummary()
    for us in microseconds:
        summary.add(us * 1000, now)
    return summary


@pytest.mark.parametrize(
    ("latencies", "quantiles"),
    [
        # Pages of Triton 2.51: compute_infer of three requests, and cache hits of two.
        ([165401, 218, 84], [84, 218, 218, 218, 218]),
        ([14, 3], [3, 3, 3, 3, 3]),
        ([75409], [75409] * 5),
        ([*range(1, 1001)], [500, 900, 950, 990, 999]),
    ],
)
def test_quantiles_are_those_of_triton(latencies: list[int], quantiles: list[float]) -> None:
    summary = summary_of(latencies)

    assert summary.quantiles(QUANTILES, 0) == quantiles
    assert (summary.count, summary.us) == (len(latencies), sum(latencies))


def test_without_latencies_every_quantile_is_nan() -> None:
    assert all(map(isnan, LatencySummary().quantiles(QUANTILES, 0)))


def test_a_latency_leaves_the_quantiles_after_a_minute_and_stays_in_count_and_sum() -> None:
    summary = summary_of([5], now=SLOT - 1)
    summary.add(7000, 3 * SLOT)

    assert summary.quantiles((0, 1), 5 * SLOT - 1) == [5, 7]
    assert summary.quantiles((0, 1), 5 * SLOT) == [7, 7]
    assert isnan(summary.quantiles((0.5,), 1000 * SLOT)[0])
    assert (summary.count, summary.us) == (2, 12)


def test_a_latency_that_is_recorded_late_counts_in_the_newest_slot() -> None:
    summary = summary_of([5], now=3 * SLOT)
    summary.add(7000, 2 * SLOT)

    assert summary.quantiles((0, 1), 3 * SLOT) == [5, 7]


def test_a_batch_counts_once_for_each_request() -> None:
    summary = LatencySummary()
    summary.add(5000, 0, times=9)
    summary.add(6000, 0)

    assert summary.quantiles((0.9, 1), 0) == [5, 6]
    assert (summary.count, summary.us) == (10, 51)


def test_many_distinct_latencies_take_bounded_memory_and_are_rounded_by_less_than_one_percent() -> None:
    draw = random.Random(1)
    latencies = [int(draw.lognormvariate(8, 2)) for _ in range(50_000)]

    summary = summary_of(latencies)

    assert sum(map(len, summary._slots)) < 4000
    latencies.sort()
    exact = [latencies[int(quantile * len(latencies)) - 1] for quantile in QUANTILES]
    assert summary.quantiles(QUANTILES, 0) == pytest.approx(exact, rel=0.008)


def test_requests_that_run_in_parts_and_cache_hits_are_summarised_too() -> None:
    statistics = ModelStatistics(summaries=LatencySummaries())
    summaries = statistics.summaries
    assert summaries is not None
    ticket = Ticket(InferRequest("m", {}), lambda *_: None)
    arrived = ticket.request.arrived_ns

    statistics.record_in_parts(
        ticket, arrived + 10_000, arrived + 90_000, ComputeTimes(input=1000, infer=50_000, output=2000)
    )
    statistics.record_cache_hit(arrived, arrived + 20_000, 4000, arrived + 30_000)

    assert (summaries.request.count, summaries.request.us) == (1, 90)
    assert (summaries.queue.count, summaries.queue.us) == (2, 10 + 20)
    assert (summaries.compute_input.us, summaries.compute_infer.us, summaries.compute_output.us) == (1, 50, 2)
    assert (summaries.cache_hit.count, summaries.cache_hit.us) == (1, 4)
