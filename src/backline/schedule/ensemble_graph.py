"""Which steps of an ensemble run for a request, and when: plain data, decided once for each set of outputs that is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from backline.engine.ensemble import Ensemble, EnsembleStep


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step that runs, and the `outputs` of its model that somebody needs: (the model's name, the ensemble's tensor)."""

    step: EnsembleStep
    outputs: tuple[tuple[str, str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs to be asked for."""
        return tuple(name for name, _ in self.outputs)


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """The steps that a set of outputs needs. `consumers` has the numbers of the steps in it that wait for a tensor of another step.

    `waits` has for each step how many such tensors it waits for; a step with 0 runs at once.
    """

    steps: tuple[PlannedStep, ...]
    waits: tuple[int, ...]
    consumers: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]


def plan_ensemble(ensemble: Ensemble, outputs: Sequence[str]) -> EnsemblePlan:
    """The plan for some of the ensemble's outputs: steps that none of them needs are left out, as in Triton."""
    producers = {tensor: index for index, step in enumerate(ensemble.steps) for tensor in step.outputs.values()}
    needed_tensors: set[str] = set()
    needed_steps: set[int] = set()
    open_tensors = list(outputs)
    while open_tensors:
        tensor = open_tensors.pop()
        if tensor in needed_tensors:
            continue
        needed_tensors.add(tensor)
        index = producers.get(tensor)
        if index is not None and index not in needed_steps:
            needed_steps.add(index)
            open_tensors.extend(ensemble.steps[index].inputs.values())
    chosen = [ensemble.steps[index] for index in sorted(needed_steps)]
    made = {tensor for step in chosen for tensor in step.outputs.values()}
    consumers: dict[str, list[int]] = {}
    waits = []
    for number, step in enumerate(chosen):
        awaited = sorted({tensor for tensor in step.inputs.values() if tensor in made})
        waits.append(len(awaited))
        for tensor in awaited:
            consumers.setdefault(tensor, []).append(number)
    steps = tuple(
        PlannedStep(step, tuple((name, tensor) for name, tensor in step.outputs.items() if tensor in needed_tensors)) for step in chosen
    )
    return EnsemblePlan(steps, tuple(waits), {tensor: tuple(numbers) for tensor, numbers in consumers.items()}, tuple(outputs))
