"""How a campaign is judged by the calls of an honest client."""

from __future__ import annotations

from fuzz.side_by_side import Call, Comparison, Log

#: The client is alone in the first and the third of three seconds.
ALONE = [(0.0, 1.0), (2.0, 3.0)]


def calls(began: float, milliseconds: float, count: int = 100, error: str = "") -> list[Call]:
    return [Call("HTTP", began, milliseconds / 1000, error)] * count


def judged(*groups: list[Call]) -> Comparison:
    return Comparison.of(Log([call for group in groups for call in group]), ALONE)


def test_only_calls_that_begin_and_end_within_a_turn_alone_count_as_alone() -> None:
    compared = judged(
        calls(0.1, 10, 1), calls(0.9, 200, 1), calls(1.5, 10, 1), calls(1.9, 200, 1), calls(2.5, 10, 1)
    )

    assert [call.began for call in compared.alone.calls] == [0.1, 2.5]
    assert [call.began for call in compared.during.calls] == [0.9, 1.5, 1.9]


def test_waits_of_fifty_milliseconds_more_than_alone_are_accepted() -> None:
    assert judged(calls(0.1, 20), calls(1.1, 69), calls(2.1, 20)).complaints() == []


def test_longer_waits_during_the_campaign_are_a_complaint() -> None:
    (complaint,) = judged(calls(0.1, 20), calls(1.1, 71), calls(2.1, 20)).complaints()

    assert "waited more than 50 ms longer" in complaint
    assert "p99 71.0 ms; alone 200 calls, p50 20.0 ms, p99 20.0 ms" in complaint


def test_a_busy_machine_that_delays_the_client_alone_as_well_is_no_complaint() -> None:
    assert judged(calls(0.1, 300), calls(1.1, 340), calls(2.1, 300)).complaints() == []


def test_one_slow_call_in_a_hundred_and_one_is_no_complaint() -> None:
    assert judged(calls(0.1, 20), calls(1.1, 20), calls(1.2, 500, 1)).complaints() == []


def test_an_error_is_a_complaint_at_any_time() -> None:
    for began in (0.1, 1.1):
        complaints = judged(calls(1.1, 20), calls(began, 1, 1, "UNAVAILABLE")).complaints()
        assert complaints == ["the honest client got HTTP UNAVAILABLE"]


def test_a_client_that_made_no_calls_during_the_campaign_is_a_complaint() -> None:
    assert judged(calls(0.1, 20)).complaints() == ["the honest client made no calls during the campaign"]
