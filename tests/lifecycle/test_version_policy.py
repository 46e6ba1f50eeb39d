"""Which versions a policy selects, for any versions and any policy."""

from __future__ import annotations

import re
from functools import cmp_to_key

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.engine.config.model_config import VersionPolicy
from backline.lifecycle.wanted import none_selected, select
from backline_client.values.names import version_order

NAMES = st.one_of(
    st.integers(0, 10**20).map(str),
    st.lists(st.integers(0, 99), min_size=2, max_size=4).map(lambda parts: ".".join(map(str, parts))),
    st.dates().map(str),
    st.text("0123456789abcv.-_²٣", min_size=1, max_size=8),
    st.text(min_size=1, max_size=6),
)
POLICIES = st.one_of(
    st.just(VersionPolicy(latest=None)),
    st.integers(1, 5).map(lambda count: VersionPolicy(latest=count)),
    st.lists(NAMES, min_size=1, max_size=4).map(
        lambda names: VersionPolicy(latest=None, specific=tuple(names))
    ),
)


@pytest.mark.parametrize(
    "ordered",
    [
        ["0", "1", "2", "9", "10", "100"],
        ["1", "1.2", "1.4.2", "1.10", "2"],
        ["2025-12-31", "2026-02-01", "2026-11-24"],
        ["v9", "v10", "v10.1"],
        ["7", "rc1", "rc2", "rc10"],
    ],
)
def test_the_order_is_natural(ordered: list[str]) -> None:
    assert select(ordered[::-1], VersionPolicy(latest=None)) == (ordered, [])


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_integers_are_ordered_as_numbers(left: int, right: int) -> None:
    assert (version_order(str(left)) < version_order(str(right))) == (left < right)


@given(
    st.lists(st.integers(0, 10**6), min_size=3, max_size=3),
    st.lists(st.integers(0, 10**6), min_size=3, max_size=3),
)
def test_dotted_numbers_are_ordered_part_by_part(left: list[int], right: list[int]) -> None:
    first, second = ".".join(map(str, left)), ".".join(map(str, right))

    assert (version_order(first) < version_order(second)) == (left < right)


@given(NAMES, NAMES, NAMES)
def test_the_order_is_total(first: str, second: str, third: str) -> None:
    a, b, c = version_order(first), version_order(second), version_order(third)

    assert (a == b) == (first == second)
    assert (a < b) + (b < a) + (a == b) == 1
    assert not (a < b < c) or a < c


@given(NAMES, NAMES)
def test_the_order_is_that_of_an_independent_comparison(first: str, second: str) -> None:
    def compare(left: str, right: str) -> int:
        """Digit runs compare by length without leading zeros, then by character, and precede other runs."""
        for one, other in zip(
            re.findall("[0-9]+|[^0-9]+", left), re.findall("[0-9]+|[^0-9]+", right), strict=False
        ):
            numbers = one[0] in "0123456789", other[0] in "0123456789"
            keys = [
                (len(part.lstrip("0")), part.lstrip("0")) if number else part
                for part, number in zip((one, other), numbers, strict=True)
            ]
            if numbers[0] != numbers[1]:
                return -1 if numbers[0] else 1
            if keys[0] != keys[1]:
                return -1 if keys[0] < keys[1] else 1
        lengths = [len(re.findall("[0-9]+|[^0-9]+", text)) for text in (left, right)]
        return lengths[0] - lengths[1]

    by_function = sorted([first, second], key=cmp_to_key(compare))
    if compare(first, second) != 0:
        assert sorted([first, second], key=version_order) == by_function


@given(st.lists(NAMES, max_size=8), POLICIES)
def test_selected_versions_are_unique_and_in_order(versions: list[str], policy: VersionPolicy) -> None:
    chosen, missing = select(versions, policy)

    assert set(chosen) <= set(versions)
    assert len(set(chosen)) == len(chosen)
    assert chosen == sorted(chosen, key=version_order)
    assert not set(missing) & set(versions)


@given(st.lists(NAMES, max_size=8), st.integers(1, 10))
def test_latest_selects_the_newest_versions(versions: list[str], count: int) -> None:
    chosen, missing = select(versions, VersionPolicy(latest=count))

    left_out = set(versions) - set(chosen)
    assert len(chosen) == min(count, len(set(versions)))
    assert all(version_order(older) < version_order(newer) for older in left_out for newer in chosen)
    assert missing == []


@given(st.lists(NAMES, max_size=8), st.lists(NAMES, min_size=1, max_size=8))
def test_specific_selects_the_named_versions_and_reports_missing_ones(
    versions: list[str], named: list[str]
) -> None:
    chosen, missing = select(versions, VersionPolicy(latest=None, specific=tuple(named)))

    assert set(chosen) == set(versions) & set(named)
    assert missing == [version for version in dict.fromkeys(named) if version not in versions]


@given(st.lists(NAMES, max_size=8), POLICIES, st.randoms())
def test_the_order_of_versions_does_not_matter(
    versions: list[str], policy: VersionPolicy, random: object
) -> None:
    shuffled = list(versions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]

    assert select(shuffled, policy) == select(versions, policy)


def test_the_reason_why_nothing_is_served_is_given() -> None:
    reason = none_selected("m", "/models/m", ["1"], ["4", "5"])

    assert reason == (
        "at least one version must be available under the version policy of model 'm': '/models/m' holds none"
        " of the versions that version_policy names: 4, 5 (it holds 1)"
    )


def test_many_missing_versions_are_abbreviated() -> None:
    missing = [str(version) for version in range(2, 1002)]
    told = none_selected("add1", "/models/add1", ["1"], missing)
    assert told.endswith("20, 21 and 980 more (it holds 1)")
