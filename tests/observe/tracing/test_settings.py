"""Which requests are traced, and how settings inherit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.observe.tracing.settings import SettingTable, TraceSetting, changed, read_levels
from backline_client.values.errors import InvalidArgument

ON = ("TIMESTAMPS",)
_changes = st.dictionaries(
    st.sampled_from(["trace_rate", "trace_count", "log_frequency"]),
    st.one_of(st.none(), st.integers(1, 9).map(str)),
    max_size=3,
)
_updates = st.lists(st.tuples(st.sampled_from(["", "one", "two"]), _changes), max_size=12)


@given(rate=st.integers(1, 9), count=st.integers(-1, 9), requests=st.integers(0, 60))
def test_one_in_rate_requests_is_traced_until_the_count_is_reached(
    rate: int, count: int, requests: int
) -> None:
    setting = TraceSetting(ON, rate, count)

    traced = [number for number in range(1, requests + 1) if setting.sample()]

    due = list(range(rate, requests + 1, rate))
    assert traced == (due if count < 0 else due[:count])


@given(rate=st.integers(0, 9), count=st.integers(-1, 3), forced=st.lists(st.booleans(), max_size=40))
def test_forced_requests_are_always_traced(rate: int, count: int, forced: list[bool]) -> None:
    setting = TraceSetting(ON, rate, count)

    assert all(setting.sample(forced=one) for one in forced if one)


def test_nothing_is_traced_while_off() -> None:
    assert not TraceSetting((), 1).sample(forced=True)


@given(updates=_updates)
def test_model_settings_override_global_ones_which_override_the_start(
    updates: list[tuple[str, dict[str, Any]]],
) -> None:
    start = TraceSetting(trace_rate=100, trace_count=200, log_frequency=300)
    table = SettingTable(start, "triton")
    own: dict[str, dict[str, str]] = {"": {}, "one": {}, "two": {}}

    for model, changes in updates:
        table.update(model, changes, has_file=True)
        own[model] = {name: value for name, value in (own[model] | changes).items() if value is not None}

    from_start = {"trace_rate": "100", "trace_count": "200", "log_frequency": "300"}
    for model, values in own.items():
        assert table.of(model).shown() == {"trace_level": ["OFF"], **from_start, **own[""], **values}


def test_a_refused_update_changes_nothing() -> None:
    table = SettingTable(TraceSetting(ON), "triton")

    with pytest.raises(InvalidArgument):
        table.update("", {"trace_count": "5", "trace_rate": "0"}, has_file=True)

    assert table.of("").shown() == TraceSetting(ON).shown()


def test_an_update_restarts_the_count() -> None:
    before = TraceSetting(ON, trace_rate=2)
    before.sample()

    after = changed(before, TraceSetting(ON, trace_rate=2), {})

    assert [after.sample(), after.sample()] == [False, True]


@pytest.mark.parametrize("names", [["OFF", "TENSORS"], ["timestamps"], []])
def test_invalid_levels_are_refused(names: list[str]) -> None:
    with pytest.raises(InvalidArgument):
        read_levels(names, "triton")
