"""The signal for autoscalers: a pure policy, read at times that the test sets, and simulated."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from backline.observe.scaling import (
    NO_DEMAND,
    STEADY,
    DemandCounters,
    Scaling,
    ScalingPolicy,
    ScalingSignal,
    replicas,
)
from backline_client.protos import message
from docs.pages import ROOT, read
from support import models
from support.server import ServerProcess, metrics_page, serve

POLICY = ScalingPolicy(target=8, window=60, stabilization=300)


def readings(scaling: Scaling, *loads: tuple[int, float], start: int = 0) -> Iterator[ScalingSignal]:
    """The signal every 15 s, for loads given as (seconds, requests in flight)."""
    now, spent = start, 0.0
    for seconds, in_flight in loads:
        for _ in range(0, seconds, 15):
            yield scaling.read(now, DemandCounters(spent))
            now += 15
            spent += 15 * in_flight


def test_the_first_reading_changes_nothing() -> None:
    assert Scaling(POLICY).read(100.0, DemandCounters(5000.0)) == STEADY


def test_utilisation_is_the_average_in_flight_as_a_share_of_the_target() -> None:
    *_, last = readings(Scaling(POLICY), (120, 8.0))

    assert last == ScalingSignal(pytest.approx(1.0), 1.0)


def test_a_load_near_the_target_keeps_the_number() -> None:
    assert {signal.desired_replicas for signal in readings(Scaling(POLICY), (600, 8.7))} == {1.0}


def test_more_load_asks_for_more_servers_but_at_most_for_twice_as_many() -> None:
    *_, more = readings(Scaling(POLICY), (120, 12.0))
    *_, much = readings(Scaling(POLICY), (120, 80.0))

    assert more.desired_replicas == pytest.approx(1.5)
    assert much.desired_replicas == 2.0


def test_a_queue_asks_for_more_servers_before_its_requests_end() -> None:
    scaling = Scaling(POLICY)
    scaling.read(0.0, NO_DEMAND)

    assert scaling.read(15.0, NO_DEMAND, waiting=16).desired_replicas == 2.0


def test_a_latency_objective_that_is_missed_asks_for_more_servers() -> None:
    """Requests that are refused because they would be late spend no time in the server."""
    few, some, many = (Scaling(POLICY) for _ in range(3))
    for scaling in (few, some, many):
        scaling.read(0.0, NO_DEMAND)

    assert few.read(15.0, DemandCounters(15 * 8.0, 1000, 9)).desired_replicas == 1.0
    assert some.read(15.0, DemandCounters(15 * 8.0, 1000, 400)).desired_replicas == pytest.approx(1 / 0.6)
    assert many.read(15.0, DemandCounters(0.0, 1000, 1000)).desired_replicas == 2.0


def test_fewer_servers_are_wanted_only_after_a_while() -> None:
    signals = list(readings(Scaling(POLICY), (120, 8.0), (900, 2.0)))
    first = next(index for index, signal in enumerate(signals) if signal.desired_replicas < 1)

    assert 400 <= first * 15 <= 500  # the load fell at 120 s, and the window has to forget it
    assert signals[-1].desired_replicas == 0.5


def test_a_new_server_does_not_ask_to_be_stopped_at_once() -> None:
    early = list(readings(Scaling(POLICY), (300, 0.0), start=1000))

    assert {signal.desired_replicas for signal in early} == {1.0}


def test_the_sum_of_all_servers_is_the_size_of_the_fleet() -> None:
    signals = [ScalingSignal(0.9, 1.0), ScalingSignal(1.4, 1.4), ScalingSignal(1.2, 1.2)]

    assert replicas(signals, 1, 10) == 4
    assert replicas(signals, 1, 3) == 3
    assert replicas([ScalingSignal(0.1, 0.5)], 1, 3) == 1


def test_many_scrapes_need_no_memory() -> None:
    scaling = Scaling(POLICY)
    for count in range(10_000):
        scaling.read(count / 100, DemandCounters(count))

    assert len(scaling._readings) <= 62


def test_the_page_shows_the_simulation() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        import scaling  # type: ignore[import-not-found]
    finally:
        sys.path.pop(0)

    page = read("docs/deploy/autoscaling.md")
    for row in scaling.rows():
        assert row in page


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("scaling")
    models.add1(folder / "models")
    with serve(folder / "models", folder / "log", "--target-in-flight", "4") as running:
        yield running


def test_a_server_shows_the_signal(server: ServerProcess) -> None:
    page = metrics_page(server)

    assert page["backline_desired_replicas"] == 1.0
    assert page["backline_utilisation"] == 0.0


def test_keda_is_told_by_which_factor_to_scale(server: ServerProcess) -> None:
    def ask(method: str, request: str, answer: str, **fields: Any) -> Any:
        call = channel.unary_unary(f"/externalscaler.ExternalScaler/{method}")
        encoded = message(f"externalscaler.{request}")(**fields).SerializeToString()
        return message(f"externalscaler.{answer}").FromString(call(encoded, timeout=10))

    target = {"name": "backline", "namespace": "models", "scalerMetadata": {"scalerAddress": "backline:8001"}}
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        (spec,) = ask("GetMetricSpec", "ScaledObjectRef", "GetMetricSpecResponse", **target).metricSpecs
        asked = {"scaledObjectRef": target, "metricName": spec.metricName}
        (value,) = ask("GetMetrics", "GetMetricsRequest", "GetMetricsResponse", **asked).metricValues
        active = ask("IsActive", "ScaledObjectRef", "IsActiveResponse", **target).result
        stream = channel.unary_stream("/externalscaler.ExternalScaler/StreamIsActive")(
            message("externalscaler.ScaledObjectRef")(**target).SerializeToString(), timeout=10
        )
        followed = message("externalscaler.IsActiveResponse").FromString(next(stream)).result
        stream.cancel()

    assert (spec.metricName, spec.targetSize, spec.targetSizeFloat) == ("backline_desired_replicas", 1, 1.0)
    assert (value.metricName, value.metricValue, value.metricValueFloat) == (spec.metricName, 1, 1.0)
    assert not active
    assert not followed
