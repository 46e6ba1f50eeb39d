"""Chooses targets by the rewards that they have earned: pure functions of rewards and of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import log, sqrt
from random import Random
from typing import NamedTuple

import numpy as np

from backline.plugins.traffic.route import Bandit

#: For how many requests Thompson sampling draws at once. One draw takes several microseconds, and rewards
#: arrive late anyway.
_DRAWN = 32


class Arm(NamedTuple):
    """The number and the sum of the rewards of a target; each reward is from 0 to 1."""

    rewards: float
    total: float


def epsilon_greedy(arms: Mapping[str, Arm], epsilon: float, random: Random) -> str:
    """Returns a random target with the probability `epsilon`, and otherwise the one with the highest mean
    reward; targets without rewards come first (Sutton and Barto, Reinforcement Learning, section 2.2).
    """
    if random.random() < epsilon:
        return random.choice(tuple(arms))
    means = {name: arm.total / arm.rewards if arm.rewards else 2.0 for name, arm in arms.items()}
    return _best(means, random)


def ucb(arms: Mapping[str, Arm], random: Random) -> str:
    """Returns the target with the highest upper confidence bound, by UCB1; targets without rewards come first
    (Auer, Cesa-Bianchi and Fischer, Finite-time Analysis of the Multiarmed Bandit Problem, 2002).
    """
    rewards = sum(arm.rewards for arm in arms.values())
    bounds = {
        name: arm.total / arm.rewards + sqrt(2 * log(rewards) / arm.rewards) if arm.rewards else float("inf")
        for name, arm in arms.items()
    }
    return _best(bounds, random)


def thompson(arms: Mapping[str, Arm], generator: np.random.Generator, requests: int) -> list[str]:
    """Returns, for each of `requests`, the target with the highest draw from the posterior of its mean
    reward, with a uniform prior (Agrawal and Goyal, Analysis of Thompson Sampling, 2012).
    """
    totals = np.array([arm.total for arm in arms.values()])
    counts = np.array([arm.rewards for arm in arms.values()])
    draws = generator.beta(1 + totals, 1 + counts - totals, (requests, len(arms)))
    names = tuple(arms)
    return [names[index] for index in draws.argmax(1)]


def _best(scores: Mapping[str, float], random: Random) -> str:
    highest = max(scores.values())
    best = [name for name, score in scores.items() if score == highest]
    return best[0] if len(best) == 1 else random.choice(best)


class Chooser:
    """Chooses targets for a route. `read` returns the rewards so far."""

    def __init__(
        self, bandit: Bandit, read: Callable[[], Mapping[str, Arm]], seed: int | None = None
    ) -> None:
        self._bandit = bandit
        self._read = read
        self._random = Random(seed)
        self._generator = np.random.default_rng(seed)
        self._drawn: list[str] = []

    def choose(self) -> str:
        match self._bandit.policy:
            case "epsilon-greedy":
                return epsilon_greedy(self._read(), self._bandit.epsilon, self._random)
            case "ucb":
                return ucb(self._read(), self._random)
            case _:
                if not self._drawn:
                    self._drawn = thompson(self._read(), self._generator, _DRAWN)
                return self._drawn.pop()
