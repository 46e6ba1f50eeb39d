"""A model composed of others: its steps, and how tensors pass between them (Triton's ensemble_scheduling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One request to another model. `version` is a version or a label, "" for the default.

    `inputs` maps each input of the model to a tensor of the ensemble, `outputs` each output that is
    requested.
    """

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The steps, in configuration order. Their tensors determine when each runs.

    `max_inflight` limits the requests in flight, per request, to each step after a decoupled one; 0 for the
    server's default.
    """

    steps: tuple[EnsembleStep, ...]
    max_inflight: int = 0

    @property
    def models(self) -> frozenset[str]:
        """The names of the models used."""
        return frozenset(step.model for step in self.steps)
