"""The policies of routes, as pure functions: weights, rules and sticky keys."""

from __future__ import annotations

from collections import Counter
from math import sqrt
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.plugins.traffic.policy import Policy
from backline.plugins.traffic.route import (
    Route,
    Rule,
    Source,
    check_cycles,
    check_route,
    parse_source,
    split_target,
)
from backline_client.values.errors import InvalidArgument

weights = st.dictionaries(
    st.text("abcdefg", min_size=1, max_size=3),
    st.floats(0, 1e6, allow_subnormal=False),
    min_size=1,
    max_size=6,
).filter(lambda found: sum(found.values()) > 0)


def nothing(_: Source) -> None:
    return None


def reader(**values: str) -> Any:
    """Reads `header_x="1"` as the header field x."""
    found = {Source(*name.partition("_")[::2]): value for name, value in values.items()}
    return found.get


def within_three_sigma(counts: Counter[str], route: Route, requests: int) -> None:
    total = sum(route.targets.values())
    for target, weight in route.targets.items():
        share = weight / total
        assert abs(counts[target] - requests * share) <= 3 * sqrt(requests * share * (1 - share)), target


@pytest.mark.parametrize(
    "targets", [{"m@1": 95, "m@2": 5}, {"a": 1, "b": 1, "c": 1}, {"a": 0.001, "b": 0.999}]
)
def test_weights_hold_within_three_sigma_over_100_000_requests(targets: dict[str, float]) -> None:
    route = Route(targets)
    policy, random = Policy(route), Random(7)

    counts = Counter(policy.by_weight(random.random()) for _ in range(100_000))

    within_three_sigma(counts, route, 100_000)


def test_sticky_shares_hold_within_three_sigma_over_100_000_clients() -> None:
    route = Route({"m@1": 80, "m@2": 15, "m@3": 5}, sticky="identity")
    policy = Policy(route)

    counts = Counter(policy.by_key(f"user-{number}") for number in range(100_000))

    within_three_sigma(counts, route, 100_000)


@given(weights, st.floats(0, 1, exclude_max=True))
def test_a_target_without_weight_is_never_chosen(targets: dict[str, float], point: float) -> None:
    policy = Policy(Route(targets))

    assert targets[policy.by_weight(point)] > 0
    assert targets[policy.by_key(str(point))] > 0


@given(weights, st.text(max_size=40), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_key_always_has_the_same_target(
    targets: dict[str, float], key: str, one: float, other: float
) -> None:
    route = Route(targets, sticky="parameter:user")
    read = reader(parameter_user=key)

    chosen = Policy(route).choose(read, one)

    assert Policy(route).choose(read, other) == chosen
    assert Policy(Route(dict(reversed(targets.items())), sticky="parameter:user")).choose(read, one) == chosen


def test_more_weight_for_one_target_moves_keys_only_to_it() -> None:
    before = Policy(Route({"a": 90, "b": 10, "c": 20}, sticky="identity"))
    after = Policy(Route({"a": 90, "b": 30, "c": 20}, sticky="identity"))

    moves = Counter((before.by_key(str(key)), after.by_key(str(key))) for key in range(20_000))
    moved = {way: count for way, count in moves.items() if way[0] != way[1]}

    assert {to for _, to in moved} == {"b"}
    # The share of b grows from 10/120 to 30/140.
    assert sum(moved.values()) / 20_000 == pytest.approx(30 / 140 - 10 / 120, abs=0.01)


def test_the_first_rule_that_applies_decides() -> None:
    rules = [
        Rule({"header:x-tier": ["beta", "staff"], "parameter:language": "en"}, "m@3"),
        Rule({"header:x-tier": "beta"}, "m@2"),
        Rule({"identity": "lab"}, "m@4"),
    ]
    policy = Policy(Route({"m@1": 1}, rules))

    assert policy.choose(reader(**{"header_x-tier": "staff", "parameter_language": "en"}), 0) == "m@3"
    assert policy.choose(reader(**{"header_x-tier": "staff"}), 0) == "m@1"
    assert policy.choose(reader(**{"header_x-tier": "beta"}), 0) == "m@2"
    assert policy.choose(reader(identity="lab"), 0) == "m@4"
    assert policy.choose(nothing, 0) == "m@1"


def test_requests_without_the_sticky_value_are_spread_by_weight() -> None:
    policy = Policy(Route({"a": 1, "b": 1}, sticky="header:x-user"))

    assert {policy.choose(nothing, 0.25), policy.choose(nothing, 0.75)} == {"a", "b"}


@pytest.mark.parametrize(
    ("route", "wrong"),
    [
        (Route({}), "at least one must have a weight above 0"),
        (Route({"m@1": 0}), "at least one must have a weight above 0"),
        (Route({"m@1": -1}), "the weight of 'm@1' is -1"),
        (Route({"m@1": float("nan")}), "the weight of 'm@1' is nan"),
        (Route({"m@1": 1e308, "m@2": 1e308}), "at least one"),
        (Route({f"m@{number}": 1 for number in range(33)}), "33 entries, more than the 32"),
        (Route({"a/b": 1}), "the model has '/'"),
        (Route({"m@": 1}), "the version is empty"),
        (Route({"r": 1}), "is the route itself"),
        (Route({"m@1": 1}, sticky="cookies"), "names no part of a request"),
        (Route({"m@1": 1}, sticky="header:Authorization"), "may hold a secret"),
        (Route({"m@1": 1}, [Rule({}, "m@2")]), "rule 1: 'when' is empty"),
        (Route({"m@1": 1}, [Rule({"identity": []}, "m@2")]), "rule 1: 'identity' needs a value"),
        (Route({"m@1": 1}, timeout_ms=5), "timeout_ms needs a fallback"),
        (Route({"m@1": 1}, fallback=["m@2"], timeout_ms=-1), "timeout_ms is -1"),
    ],
)
def test_an_invalid_route_is_refused_with_the_place(route: Route, wrong: str) -> None:
    with pytest.raises(InvalidArgument, match=f"route 'r': .*{wrong}"):
        check_route("r", route)


def test_targets_are_split_at_the_last_at_sign() -> None:
    assert split_target("m") == ("m", "")
    assert split_target("m@4") == ("m", "4")
    assert split_target("a@b@stable") == ("a@b", "stable")


def test_names_of_header_fields_have_no_case() -> None:
    assert parse_source("header:X-User") == Source("header", "x-user")


def test_routes_that_form_a_cycle_are_refused() -> None:
    check_cycles({"a": Route({"b": 1}), "b": Route({"a@1": 1})})

    with pytest.raises(InvalidArgument, match="cycle, so requests would never arrive: a -> b -> a"):
        check_cycles({"a": Route({"m": 1}, fallback=["b"]), "b": Route({"a": 1})})
