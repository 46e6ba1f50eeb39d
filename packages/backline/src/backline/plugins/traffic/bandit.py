"""Chooses targets by the rewards that they have earned: pure functions of rewards and of random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf, log, sqrt
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


def greedy(arms: Mapping[str, Arm]) -> list[str]:
    """Returns the targets with the highest mean reward; those without rewards come first. Epsilon-greedy uses
    them for all but a share of the requests (Sutton and Barto, Reinforcement Learning, section 2.2).
    """
    return _best({name: arm.total / arm.rewards if arm.rewards else 2.0 for name, arm in arms.items()})


def ucb(arms: Mapping[str, Arm]) -> list[str]:
    """Returns the targets with the highest upper confidence bound, by UCB1; those without rewards come first
    (Auer, Cesa-Bianchi and Fischer, Finite-time Analysis of the Multiarmed Bandit Problem, 2002).
    """
    rewards = sum(arm.rewards for arm in arms.values())
    return _best(
        {
            name: arm.total / arm.rewards + sqrt(2 * log(rewards) / arm.rewards) if arm.rewards else inf
            for name, arm in arms.items()
        }
    )


def thompson(arms: Mapping[str, Arm], generator: np.random.Generator, requests: int) -> list[str]:
    """Returns, for each of `requests`, the target with the highest draw from the posterior of its mean
    reward, with a uniform prior (Agrawal and Goyal, Analysis of Thompson Sampling, 2012).
    """
    totals = np.array([arm.total for arm in arms.values()])
    counts = np.array([arm.rewards for arm in arms.values()])
    draws = generator.beta(1 + totals, 1 + counts - totals, (requests, len(arms)))
    names = tuple(arms)
    return [names[index] for index in draws.argmax(1)]


def _best(scores: Mapping[str, float]) -> list[str]:
    highest = max(scores.values())
    return [name for name, score in scores.items() if score == highest]


class Chooser:
    """Chooses targets for a route. `read` returns the rewards so far; call `rewarded` when they change."""

    def __init__(
        self, bandit: Bandit, read: Callable[[], Mapping[str, Arm]], seed: int | None = None
    ) -> None:
        self._bandit = bandit
        self._epsilon = bandit.epsilon if bandit.policy == "epsilon-greedy" else 0.0
        self._read = read
        self._targets = list(read())
        self._random = Random(seed)
        self._generator = np.random.default_rng(seed)
        #: What Thompson sampling has drawn for the next requests.
        self._drawn: list[str] = []
        #: What the other policies choose until the next reward.
        self._best: list[str] = []

    def rewarded(self) -> None:
        self._best = []

    def choose(self) -> str:
        if self._bandit.policy == "thompson":
            if not self._drawn:
                self._drawn = thompson(self._read(), self._generator, _DRAWN)
            return self._drawn.pop()
        if self._epsilon and self._random.random() < self._epsilon:
            return self._random.choice(self._targets)
        if not self._best:
            self._best = ucb(self._read()) if self._bandit.policy == "ucb" else greedy(self._read())
        return self._best[0] if len(self._best) == 1 else self._random.choice(self._best)
