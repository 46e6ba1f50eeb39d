"""The policy that spreads requests over servers, with plain values and a clock that the test sets."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Callable

import pytest

from backline_client.balance.balancer import BalancePolicy, Balancer, Endpoint, RequestAttempt, Verdict

URLS = ("a", "b", "c")


def send(balancer: Balancer, now: float = 0.0) -> RequestAttempt:
    endpoint = balancer.choose(now)
    assert endpoint is not None
    return balancer.started(endpoint, now)


def simulate(
    balancer: Balancer, seconds: Callable[[str, float], float], *, clients: int, until: float
) -> list[tuple[float, str]]:
    """Clients that send one request after another; returns when each was sent, and to which server."""
    sent: list[tuple[float, str]] = []
    numbers = itertools.count()
    ends: list[tuple[float, int, RequestAttempt]] = []

    def begin(now: float) -> None:
        attempt = send(balancer, now)
        url = attempt.endpoint.url
        sent.append((now, url))
        heapq.heappush(ends, (now + seconds(url, now), next(numbers), attempt))

    for _ in range(clients):
        begin(0.0)
    while ends[0][0] < until:
        now, _, attempt = heapq.heappop(ends)
        balancer.finished(attempt, Verdict.ANSWERED, now)
        begin(now)
    return sent


def test_equal_servers_take_turns() -> None:
    balancer = Balancer(URLS)
    urls = []
    for _ in range(6):
        attempt = send(balancer)
        urls.append(attempt.endpoint.url)
        balancer.finished(attempt, Verdict.ANSWERED, 0.001)

    assert urls == ["a", "b", "c"] * 2


@pytest.mark.parametrize(("seconds", "stays"), [(0.0001, True), (0.001, False)], ids=["brief", "long"])
def test_brief_requests_of_a_lone_caller_stay_on_a_server_for_a_while(seconds: float, stays: bool) -> None:
    sent = [url for _, url in simulate(Balancer(URLS), lambda url, now: seconds, clients=1, until=1.0)]
    moves = sum(before != after for before, after in itertools.pairwise(sent))
    shares = Counter(sent)

    assert moves < len(sent) / 30 if stays else moves == len(sent) - 1
    assert max(shares.values()) - min(shares.values()) <= 64


def test_brief_requests_of_several_callers_take_turns() -> None:
    sent = simulate(Balancer(URLS), lambda url, now: 0.0001, clients=6, until=0.1)
    late = [url for moment, url in sent if moment > 0.05]

    assert all(set(late[at : at + 6]) == set(URLS) for at in range(0, len(late) - 6, 6))


def test_the_server_with_the_fewest_requests_in_flight_is_chosen() -> None:
    balancer = Balancer(URLS)
    attempts = [send(balancer) for _ in range(5)]
    balancer.finished(attempts[2], Verdict.ABANDONED, 0.0)

    assert send(balancer).endpoint.url == "c"


def test_each_request_of_a_shared_call_counts() -> None:
    balancer = Balancer(["a", "b"])
    a, b = balancer.endpoints
    shared = balancer.started(a, 0.0, requests=32)
    for _ in range(31):
        assert send(balancer).endpoint is b
    balancer.finished(shared, Verdict.ANSWERED, 0.001)

    assert send(balancer, 0.001).endpoint is a
    assert (a.in_flight, b.in_flight) == (1, 31)


def test_a_shared_call_goes_to_a_fast_server_rather_than_an_idle_slow_one() -> None:
    balancer = Balancer(["fast", "slow"])
    fast, slow = balancer.endpoints
    fast.latency, slow.latency = 0.01, 0.1
    balancer.started(fast, 0.0, requests=16)

    assert balancer.choose(0.0) is slow
    assert balancer.choose(0.0, requests=16) is fast


@pytest.mark.parametrize("clients", [1, 8, 32])
def test_a_slow_server_gets_few_requests(clients: int) -> None:
    sent = simulate(
        Balancer(URLS), lambda url, now: 0.2 if url == "b" else 0.005, clients=clients, until=10.0
    )
    late = Counter(url for moment, url in sent if moment > 2)

    assert late["b"] <= 0.05 * late.total()


def test_a_server_that_was_slow_gets_its_share_again() -> None:
    slow_until = 5.0
    sent = simulate(
        Balancer(URLS),
        lambda url, now: 0.2 if url == "b" and now < slow_until else 0.005,
        clients=8,
        until=20.0,
    )
    late = Counter(url for moment, url in sent if moment > 17)

    assert late["b"] >= 0.2 * late.total()


def test_a_server_that_stops_in_the_middle_of_requests_gets_no_more() -> None:
    balancer = Balancer(URLS)
    sent = simulate(balancer, lambda url, now: 1e9 if url == "b" and now > 1 else 0.005, clients=8, until=4.0)
    after = Counter(url for moment, url in sent if moment > 1.5)

    assert after["b"] <= 0.05 * after.total()


def _lose(balancer: Balancer, now: float) -> Endpoint:
    attempt = send(balancer, now)
    balancer.finished(attempt, Verdict.LOST, now)
    return attempt.endpoint


def test_a_lost_server_gets_nothing_until_a_probe_finds_it_alive() -> None:
    balancer = Balancer(URLS)
    lost = _lose(balancer, 0.0)

    assert all(send(balancer, 100.0).endpoint is not lost for _ in range(10))
    assert balancer.to_probe(0.9) == []
    assert balancer.to_probe(1.0) == [lost]
    assert balancer.to_probe(1.1) == []  # its answer is awaited
    balancer.probed(lost, 1.2, alive=True)
    assert lost in {send(balancer, 1.2).endpoint for _ in range(10)}


def test_a_server_that_stays_away_is_probed_less_and_less_often() -> None:
    balancer = Balancer(URLS)
    lost = _lose(balancer, 0.0)
    pauses = []
    for _ in range(8):
        pauses.append(lost.probe_at)
        now = lost.probe_at
        assert balancer.to_probe(now) == [lost]
        balancer.probed(lost, now, alive=False)
        pauses[-1] = lost.probe_at - now

    assert pauses == [2, 4, 8, 16, 30, 30, 30, 30]


def test_failures_in_a_row_eject_a_server_and_single_ones_do_not() -> None:
    balancer = Balancer(["a", "b"])
    a = balancer.endpoints[0]
    for verdict in (Verdict.FAILED, Verdict.FAILED, Verdict.ANSWERED, Verdict.FAILED, Verdict.FAILED):
        balancer.finished(balancer.started(a, 0.0), verdict, 0.0)
    assert not a.ejected

    balancer.finished(balancer.started(a, 0.0), Verdict.FAILED, 0.0)
    assert a.ejected


def test_if_all_servers_are_lost_they_still_get_requests() -> None:
    balancer = Balancer(["a", "b"])
    for _ in range(2):
        _lose(balancer, 0.0)

    assert balancer.choose(0.1) is not None


def test_a_busy_server_is_avoided_for_as_long_as_it_says() -> None:
    balancer = Balancer(["a", "b"])
    busy = send(balancer)
    balancer.finished(busy, Verdict.BUSY, 0.0, busy_for=2.0)

    assert {send(balancer, 1.9).endpoint.url for _ in range(5)} == {"b"}
    assert "a" in {send(balancer, 2.1).endpoint.url for _ in range(5)}


def test_a_request_is_not_sent_twice_to_the_same_server() -> None:
    balancer = Balancer(["a", "b"])
    a, b = balancer.endpoints

    assert balancer.choose(0.0, [a]) is b
    assert balancer.choose(0.0, [a, b]) is None


def test_a_server_with_an_old_request_is_probed() -> None:
    balancer = Balancer(URLS)
    attempt = send(balancer)

    assert balancer.to_probe(0.4) == []
    assert balancer.to_probe(0.6) == [attempt.endpoint]
    balancer.probed(attempt.endpoint, 0.7, alive=True)
    assert not attempt.endpoint.ejected


def test_a_stream_that_lasts_is_no_sign_of_a_slow_server() -> None:
    balancer = Balancer(["a", "b"])
    balancer.started(balancer.endpoints[0], 0.0, timed=False)

    assert balancer.to_probe(100.0) == []
    assert balancer.endpoints[0].waiting(100.0) == 0


def test_late_is_what_few_recent_requests_were() -> None:
    balancer = Balancer(["a", "b"])
    for number in range(100):
        balancer.finished(send(balancer), Verdict.ANSWERED, 0.100 if number % 50 == 0 else 0.010)

    assert balancer.late_after == pytest.approx(0.010)
    assert Balancer(["a"]).late_after is None


def test_only_a_share_of_requests_is_sent_twice() -> None:
    balancer = Balancer(
        ["a", "b"], BalancePolicy(hedge_share=0.05, hedge_burst=3, retry_share=0.2, retry_burst=5)
    )
    hedges = retries = 0
    for _ in range(1000):
        balancer.arrived()
        hedges += balancer.take_hedge()
        retries += balancer.take_retry()

    assert hedges == pytest.approx(0.05 * 1000 + 3, abs=2)
    assert retries == pytest.approx(0.2 * 1000 + 5, abs=2)


def test_servers_that_stay_keep_their_state_when_others_come_and_go() -> None:
    balancer = Balancer(["a", "b"])
    attempt = send(balancer)
    added, removed = balancer.update(["a", "c"])

    assert [endpoint.url for endpoint in added] == ["c"]
    assert [endpoint.url for endpoint in removed] == ["b"]
    assert balancer.endpoints[0] is attempt.endpoint
