"""A model that consists of others: which of them it asks, and how their tensors are joined (Triton's ensemble_scheduling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnsembleStep:
    """One request to another model. `version` is a version or a label, "" for the one that the server chooses.

    `inputs` has the ensemble's tensor for each input of the model, `outputs` the ensemble's tensor for outputs of the model; outputs that
    are not in it are not asked for.
    """

    model: str
    version: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The steps, in the order of the file; what runs when is decided by their tensors.

    `max_inflight` is how many requests to each step behind a decoupled one may be under way for one request; 0 is the server's choice.
    """

    steps: tuple[EnsembleStep, ...]
    max_inflight: int = 0

    @property
    def models(self) -> frozenset[str]:
        """The names of the models that it asks."""
        return frozenset(step.model for step in self.steps)
