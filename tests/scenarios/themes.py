"""All themes: their models, their scenarios in order, and their server setups."""

from __future__ import annotations

from scenarios import (
    batching,
    cache,
    cancellation,
    decoupled,
    ensembles,
    generate,
    iterative,
    priorities,
    queue_limits,
    ragged,
    rate_limiter,
    sequences,
    statistics,
    timeouts,
    warm_up,
)
from scenarios.scenario import SCENARIOS, Scenario
from scenarios.servers import Setup

_THEMES = (
    batching,
    ragged,
    priorities,
    timeouts,
    queue_limits,
    ensembles,
    sequences,
    iterative,
    decoupled,
    generate,
    cache,
    cancellation,
    warm_up,
    statistics,
)


_COMMON = Setup(
    ("--cache-config=local,size=4194304",),
    {name: model for theme in _THEMES for name, model in theme.MODELS.items()},
)
_RATED = Setup(("--rate-limit=execution_count",), rate_limiter.MODELS)


def setup_of(scenario: Scenario) -> Setup:
    """The server setup of a scenario."""
    return _RATED if scenario.theme == "rate_limiter" else _COMMON


__all__ = ["SCENARIOS", "setup_of"]
