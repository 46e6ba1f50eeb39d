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
from scenarios.difference import Difference
from scenarios.differences import DIFFERENCES
from scenarios.drop_in import control, inference, observation, server, settings, studio, texts
from scenarios.drop_in.differences import DROP_IN as DROP_IN_DIFFERENCES
from scenarios.drop_in.differences import TEXTS_GO_ON
from scenarios.drop_in.setup import DROP_IN
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


#: The themes of the drop-in command. Failed loads change what the server says of itself, so they come last.
_DROP_IN = [
    f"drop_in/{theme.__name__.rpartition('.')[2]}"
    for theme in (studio, server, inference, texts, settings, observation, control)
]
SCENARIOS.sort(key=lambda scenario: _DROP_IN.index(scenario.theme) if scenario.theme in _DROP_IN else -1)


def differences_of(scenario: Scenario) -> tuple[Difference, ...]:
    """The table of differences that the scenario is compared by."""
    return (TEXTS_GO_ON, *DROP_IN_DIFFERENCES) if scenario.theme in _DROP_IN else DIFFERENCES


def setup_of(scenario: Scenario) -> Setup:
    """The server setup of a scenario."""
    if scenario.theme in _DROP_IN:
        return DROP_IN
    return _RATED if scenario.theme == "rate_limiter" else _COMMON


__all__ = ["SCENARIOS", "differences_of", "setup_of"]
