"""The phases of a version: their transitions, and the states that clients see."""

from __future__ import annotations

import itertools

import pytest

from backline.engine.config.model_config import ModelConfig
from backline.engine.model import ModelState
from backline.lifecycle.phase import FOLLOWING, SEEN_AS, IllegalPhase, StandIn, VersionPhase


def version(phase: VersionPhase) -> StandIn:
    return StandIn("m", "1", ModelConfig("m"), phase)


def test_the_tables_name_every_phase() -> None:
    assert set(FOLLOWING) == set(SEEN_AS) == set(VersionPhase)


@pytest.mark.parametrize(("before", "after"), [*itertools.product(VersionPhase, VersionPhase)])
def test_a_version_enters_only_phases_that_may_follow(before: VersionPhase, after: VersionPhase) -> None:
    one = version(before)
    if after in FOLLOWING[before]:
        one.enter(after, "why")
        assert (one.phase, one.model.state, one.model.reason) == (after, SEEN_AS[after], "why")
    else:
        with pytest.raises(IllegalPhase, match=f"is {before.value} cannot become {after.value}"):
            one.enter(after)
        assert (one.phase, one.model.state) == (before, SEEN_AS[before])


def test_a_version_is_only_ready_to_clients_once_it_takes_requests() -> None:
    assert [phase for phase in VersionPhase if SEEN_AS[phase] is ModelState.READY] == [VersionPhase.READY]


def test_a_version_that_was_unloaded_or_failed_never_serves_again() -> None:
    for phase in (VersionPhase.FAILED, VersionPhase.UNLOADED):
        assert not FOLLOWING[phase]
