"""Quotas, tested with plain values and a clock that the test sets."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.access.access import Access, Policy
from backline.access.identity import Grant, Identity, anonymous
from backline.access.keys import hash_key
from backline.access.quota import Limit, Meter, Quota, TokenBucket
from backline.access.scope import Scope
from backline.engine.ticket import Ticket
from backline_client.values.errors import BacklineError, Internal, QuotaExceeded
from backline_client.values.messages import InferRequest, InferResponse

KEY = "bk_3CTebq8bC-RvqehCLEW8redD-T4Xm-5kB9OPVMcVc8I"


def meter(*quotas: Quota) -> Meter:
    return Meter(quotas, "the key 'app'", 0.0)


def ticket(model: str = "m") -> Ticket:
    return Ticket(InferRequest(model, {}), lambda *_: None)


def admitted(found: Meter, now: float, model: str | None = "m", size: int = 0) -> bool:
    try:
        found.charge(model, size, now)
    except QuotaExceeded:
        return False
    return True


def test_a_burst_passes_at_once_and_then_the_rate_holds() -> None:
    found = meter(Quota(requests_per_second=10, burst=20))
    assert sum(admitted(found, 0.0) for _ in range(50)) == 20
    assert sum(admitted(found, 1.0) for _ in range(50)) == 10
    assert sum(admitted(found, 100.0) for _ in range(50)) == 20


def test_a_rate_below_one_admits_the_first_request() -> None:
    found = meter(Quota(requests_per_second=0.1))
    assert admitted(found, 0.0)
    assert not admitted(found, 9.9)
    assert admitted(found, 10.0)


@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 0.5), max_size=200),
)
def test_no_pattern_of_arrivals_exceeds_burst_plus_rate(rate: float, burst: int, gaps: list[float]) -> None:
    found = meter(Quota(requests_per_second=rate, burst=burst))
    now = 0.0
    passed = 0
    for gap in gaps:
        now += gap
        passed += admitted(found, now)
    assert passed <= burst + now * rate + 1e-6


@given(
    rate=st.floats(1000, 100_000),
    burst=st.integers(1000, 100_000),
    gaps=st.lists(st.floats(0, 0.01), max_size=50),
)
def test_a_large_quota_is_exceeded_by_a_thousandth_at_most(
    rate: float, burst: int, gaps: list[float]
) -> None:
    """Its tokens are taken some at a time, and those that are left do not expire."""
    found = meter(Quota(requests_per_second=rate, burst=burst, bytes_per_second=1e12))
    now = 0.0
    passed = 0
    for gap in gaps:
        now += gap
        passed += sum(admitted(found, now, size=100) for _ in range(100))
    assert passed <= 1.001 * burst + now * rate + 1e-6


def test_a_large_burst_passes_at_once() -> None:
    found = meter(Quota(requests_per_second=1000, burst=5000, bytes_per_second=1e9))
    assert sum(admitted(found, 0.0, size=10) for _ in range(6000)) == 5000
    assert sum(admitted(found, 1.0, size=10) for _ in range(2000)) == 1000


def test_large_bodies_use_up_a_large_quota_of_bytes() -> None:
    found = meter(Quota(bytes_per_second=10_000))
    assert sum(admitted(found, 0.0, size=1000) for _ in range(20)) == 10
    assert sum(admitted(found, 1.0, size=1) for _ in range(20_000)) == 10_000


@given(st.floats(0.1, 1000), st.integers(1, 100), st.integers(0, 100))
def test_the_time_to_wait_is_exact(rate: float, burst: int, before: int) -> None:
    bucket = TokenBucket(rate, burst, 0.0)
    bucket.take(min(before, burst), 0.0)
    wait = bucket.wait(1, 0.0)
    assert bucket.wait(1, wait) == 0
    assert not wait or bucket.wait(1, 0.9 * wait) > 0
    assert (wait == 0) == (before < burst)


def test_a_body_larger_than_a_second_of_bytes_passes_and_is_paid_for_afterwards() -> None:
    found = meter(Quota(bytes_per_second=1000))
    assert admitted(found, 0.0, size=5000)
    assert not admitted(found, 4.0, size=1)
    assert admitted(found, 4.1, size=50)


def test_a_request_on_the_edge_of_a_quota_passes_or_is_refused() -> None:
    now = 1e7  # the clock of a machine that has been up for months, whose times round to 2e-9 s
    found = meter(Quota(requests_per_second=300, burst=1000))
    assert admitted(found, now)
    assert found.only is not None
    bucket = found.only.requests
    assert bucket is not None
    outcomes = set()
    for billionths in range(-10, 11):
        found.only.paid = 0
        bucket.full_at = now + bucket.room - bucket.token + billionths * 1e-9
        outcomes.add(admitted(found, now))
    assert outcomes == {True, False}


def test_a_refusal_counts_nothing() -> None:
    found = meter(
        Quota(requests_per_second=10, burst=1), Quota(requests_per_second=1, burst=1, models=("big-*",))
    )
    assert admitted(found, 0.0, "big-1")
    assert not admitted(found, 0.1, "big-1")  # of the second quota: the first is whole again
    assert admitted(found, 0.1, "small")
    assert admitted(found, 1.0, "big-2")


@pytest.mark.parametrize(
    ("quota", "charged", "told"),
    [
        (
            Quota(requests_per_second=2),
            2,
            "the key 'app' may send 2 requests per second with bursts of 2; try again in 0.5 s",
        ),
        (
            Quota(requests_per_second=2, burst=5, models=("a*", "m")),
            5,
            "the key 'app' may send 2 requests per second with bursts of 5 to models a*, m; try again in",
        ),
        (
            Quota(bytes_per_second=10),
            1,
            "the key 'app' may send 10 bytes per second; try again in 1 s",
        ),
    ],
)
def test_a_refusal_says_which_limit_and_when_to_try_again(quota: Quota, charged: int, told: str) -> None:
    found = meter(quota)
    for _ in range(charged):
        found.charge("m", 10, 0.0)
    with pytest.raises(QuotaExceeded) as refused:
        found.charge("m", 10, 0.0)
    assert told in refused.value.message
    assert refused.value.http_status == 429
    assert refused.value.grpc_code == 8


def test_requests_in_flight_are_limited() -> None:
    found = meter(Quota(max_in_flight=2), Quota(max_in_flight=1, models=("big",)))
    first, second = ticket("big"), ticket()
    found.follow(first)
    with pytest.raises(QuotaExceeded, match="may have 1 requests in flight to models big"):
        found.follow(ticket("big"))
    found.follow(second)
    with pytest.raises(QuotaExceeded, match="the key 'app' may have 2 requests in flight"):
        found.follow(ticket())
    assert not admitted(found, 0.0)
    first.cancel()
    assert admitted(found, 0.0)
    found.follow(ticket("big"))


ends = st.sampled_from(["complete", "fail", "cancel", "expire", "refuse"])


@given(
    st.lists(st.tuples(st.sampled_from(["a", "b"]), st.lists(ends, min_size=1, max_size=3)), max_size=30),
    st.data(),
)
def test_no_slot_is_lost_or_given_back_twice(asked: list[tuple[str, list[str]]], data: st.DataObject) -> None:
    found = meter(Quota(max_in_flight=4), Quota(max_in_flight=2, models=("b",)))
    limits: list[Limit] = found._limits
    flying: list[tuple[Ticket, list[str]]] = []

    def end_one() -> None:
        one, ways = flying.pop(data.draw(st.integers(0, len(flying) - 1)))
        for way in ways:  # only the first has an effect
            end(one, way)

    for model, ways in asked:
        one = ticket(model)
        try:
            found.follow(one)
        except QuotaExceeded:
            assert len(flying) == 4 or (model == "b" and limits[1].in_flight == 2)
            one.refuse(Internal("refused"))
        else:
            flying.append((one, ways))
        assert limits[0].in_flight == len(flying)
        assert limits[1].in_flight == sum(other.request.model_name == "b" for other, _ in flying)
        if data.draw(st.booleans()):  # changed quotas keep the count
            found.change(found.quotas, found.whose, 1.0)
            limits = found._limits
        while flying and data.draw(st.booleans()):
            end_one()
    while flying:
        end_one()
    assert [limit.in_flight for limit in limits] == [0, 0]


def end(one: Ticket, way: str) -> None:
    error: BacklineError = Internal("failed")
    if way == "complete":
        if not one.cancelled and one.state.value != "done":
            one.complete(InferResponse("m", "1", "", []), None)
    elif way == "fail":
        if not one.cancelled and one.state.value != "done":
            one.complete(None, error)
    elif way == "cancel":
        one.cancel()
    elif way == "expire":
        one.expire(error)
    else:
        one.refuse(error)


def test_a_reload_keeps_what_was_used() -> None:
    def policy(*quotas: Quota) -> Policy:
        grant = Grant(frozenset({Scope.INFER}))
        return Policy(
            anonymous((Scope.INFER,), quotas=quotas),
            {hash_key(KEY): Identity("app", (grant,), quotas=quotas)},
        )

    access = Access(policy(Quota(requests_per_second=0.001, burst=3, max_in_flight=5)))
    known = (access.identify({}), access.identify({b"x-api-key": KEY.encode()}))
    for identity in known:
        assert identity.meter is not None
        for _ in range(2):
            identity.meter.charge("m", 0, time.monotonic())
        identity.follow(ticket())
    access.use(policy(Quota(requests_per_second=0.001, burst=3, max_in_flight=1)))
    for identity in known:
        assert identity.meter is not None
        with pytest.raises(QuotaExceeded, match="may have 1 requests in flight"):
            identity.meter.charge("m", 0, time.monotonic())
    access.use(policy(Quota(requests_per_second=0.001, burst=4)))
    for identity in known:
        assert identity.meter is not None
        assert [admitted(identity.meter, time.monotonic()) for _ in range(3)] == [True, True, False]
    access.use(policy())
    assert [identity.meter for identity in known] == [None, None]


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    bucket = TokenBucket(10, 10, 100.0)
    bucket.take(5, 100.0)
    bucket.take(5, 50.0)
    assert bucket.level(100.0) == 0


def test_what_is_left_is_told_once_half_is_used() -> None:
    found = meter(Quota(requests_per_second=10, burst=20), Quota(requests_per_second=1, models=("m",)))
    for _ in range(9):
        found.charge("other", 0, 0.0)
    assert found.standing(0.0) is None
    for _ in range(3):
        found.charge("other", 0, 0.0)
    assert found.standing(0.0) == (20, 2, 8, 2)
    assert found.standing(0.5) is None
    assert meter(Quota(max_in_flight=1)).standing(0.0) is None
