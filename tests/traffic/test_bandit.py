"""Bandits find the target with the highest reward, in simulations and by the properties of their policies."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backline.plugins.traffic.bandit import Arm, Chooser, greedy, ucb
from backline.plugins.traffic.route import Bandit

POLICIES = ("epsilon-greedy", "thompson", "ucb")
arms = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.tuples(st.integers(0, 1000), st.floats(0, 1)).map(lambda pair: Arm(pair[0], pair[0] * pair[1])),
    min_size=1,
    max_size=6,
)


def simulate(policy: str, means: dict[str, float], requests: int, seed: int, late: int = 0) -> Counter[str]:
    """How often each target is chosen if rewards are 0 or 1, and arrive after `late` further requests."""
    rewards = {name: Arm(0, 0) for name in means}
    chooser = Chooser(Bandit(policy), lambda: rewards, seed)  # type: ignore[arg-type]
    random, chosen = Random(seed), []
    for _ in range(requests):
        chosen.append(chooser.choose())
        if len(chosen) > late:
            name = chosen[-1 - late]
            count, total = rewards[name]
            rewards[name] = Arm(count + 1, total + (random.random() < means[name]))
            chooser.rewarded()
    return Counter(chosen)


@pytest.mark.parametrize("late", [0, 50])
@pytest.mark.parametrize("policy", POLICIES)
def test_most_requests_go_to_the_best_of_three_targets(policy: str, late: int) -> None:
    for seed in range(5):
        counts = simulate(policy, {"a": 0.2, "b": 0.5, "c": 0.8}, 5000, seed, late)

        assert counts["c"] > 4000, (policy, seed, counts)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_target_is_tried(policy: str) -> None:
    assert set(simulate(policy, {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5}, 500, 3)) == {"a", "b", "c", "d"}


@given(arms, st.sampled_from(POLICIES), st.integers(0, 2**32))
def test_the_choice_is_one_of_the_targets(given: dict[str, Arm], policy: str, seed: int) -> None:
    assert Chooser(Bandit(policy), lambda: given, seed).choose() in given  # type: ignore[arg-type]


@given(arms)
def test_targets_without_rewards_come_first(given: dict[str, Arm]) -> None:
    new = {name for name, arm in given.items() if not arm.rewards}
    if new:
        assert set(ucb(given)) == new
        assert set(greedy(given)) == new


def test_epsilon_is_the_share_of_random_targets() -> None:
    given = {"a": Arm(10, 9), "b": Arm(10, 1)}
    chooser = Chooser(Bandit("epsilon-greedy", 0.2), lambda: given, 5)

    counts = Counter(chooser.choose() for _ in range(10_000))

    assert 850 < counts["b"] < 1150  # half of 20 %
