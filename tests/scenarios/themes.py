"""All themes: their models, and their scenarios in order."""

from __future__ import annotations

from scenarios import batching, cache, cancellation, decoupled, ensembles, priorities, queue_limits, sequences, statistics, timeouts
from scenarios.repository import Served
from scenarios.scenario import SCENARIOS

_THEMES = (batching, priorities, timeouts, queue_limits, ensembles, sequences, decoupled, cache, cancellation, statistics)

MODELS: dict[str, Served] = {name: model for theme in _THEMES for name, model in theme.MODELS.items()}

__all__ = ["MODELS", "SCENARIOS"]
