"""Plans which steps of an ensemble a request needs, in what order, once per set of requested outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from backline.engine.config.model_config import Ensemble, EnsembleStep
from backline.engine.errors import InvalidArgument
from backline.engine.values.tensor import Tensor


@dataclass(frozen=True, slots=True)
class StepModel:
    """What an ensemble needs to know about the model of a step.

    `ranks` has the number of dimensions of each tensor, including the batch dimension if the model is
    `batched`; empty if the model has not been loaded yet.
    """

    decoupled: bool = False
    batched: bool = False
    ranks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Adapts a tensor between models of which only one has batches: adds or removes a dimension of 1."""
        rank, shape = self.ranks.get(name), tensor.shape
        if rank is None or rank == len(shape):
            fitting = shape
        elif self.batched and rank == len(shape) + 1:
            fitting = (1, *shape)
        elif not self.batched and rank == len(shape) - 1 and shape[0] == 1:
            fitting = shape[1:]
        else:
            fitting = shape  # the model's check reports the mismatch
        return Tensor(
            name, tensor.datatype, fitting, tensor.data if fitting is shape else tensor.data.reshape(fitting)
        )


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """A step to run, and what is needed from its model.

    `index` is the step's place in the configuration. `names` are the model's outputs to request; `targets`
    maps them to tensors of the ensemble, `outputs` lists the same pairs, and `answers` counts those that are
    outputs of the ensemble. `inputs` pairs each input of the model with a tensor of the ensemble. `followers`
    lists the steps (by number in the plan) that wait for this one, and for how many of its tensors. `level`
    is the number of decoupled steps before this one: a step at level 0 runs once, and a step after a
    decoupled one runs for each of its responses.
    """

    index: int
    step: EnsembleStep
    outputs: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    targets: Mapping[str, str]
    inputs: tuple[tuple[str, str], ...]
    followers: tuple[tuple[int, int], ...]
    answers: int
    level: int
    decoupled: bool


@dataclass(frozen=True, slots=True)
class EnsemblePlan:
    """The steps needed for a set of outputs. `consumers` lists, by tensor, the numbers of the steps that wait
    for it.

    `waits` has the number of tensors from other steps that each step waits for; the steps with 0 are `first`.
    `chain` has the numbers of the decoupled steps that the outputs depend on, in order. `made` is the number
    of outputs that come from steps.
    """

    steps: tuple[PlannedStep, ...]
    waits: tuple[int, ...]
    first: tuple[PlannedStep, ...]
    consumers: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    chain: tuple[int, ...] = ()
    made: int = 0

    @property
    def depth(self) -> int:
        """The level of the outputs; at 0 there is exactly one response."""
        return len(self.chain)


def plan_ensemble(
    ensemble: Ensemble, outputs: Sequence[str], decoupled: Collection[int] = ()
) -> EnsemblePlan:
    """The plan for some of the ensemble's outputs. As in Triton, steps that none of them needs are left out.

    `decoupled` has the indexes of the steps with decoupled models.
    """
    producers = {
        tensor: index for index, step in enumerate(ensemble.steps) for tensor in step.outputs.values()
    }
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
    levels = (
        {tensor: len(steps) for tensor, steps in origins(ensemble, decoupled).items()} if decoupled else {}
    )
    indexes = sorted(needed_steps)
    made = {tensor for index in indexes for tensor in ensemble.steps[index].outputs.values()}
    awaited = [
        {tensor for tensor in ensemble.steps[index].inputs.values() if tensor in made} for index in indexes
    ]
    consumers: dict[str, list[int]] = {}
    for number, tensors in enumerate(awaited):
        for tensor in sorted(tensors):
            consumers.setdefault(tensor, []).append(number)
    chosen = []
    for index in indexes:
        step = ensemble.steps[index]
        asked = {name: tensor for name, tensor in step.outputs.items() if tensor in needed_tensors}
        followers = Counter(number for tensor in asked.values() for number in consumers.get(tensor, ()))
        chosen.append(
            PlannedStep(
                index,
                step,
                outputs=tuple(asked.items()),
                names=tuple(asked),
                targets=asked,
                inputs=tuple(step.inputs.items()),
                followers=tuple(sorted(followers.items())),
                answers=sum(tensor in outputs for tensor in asked.values()),
                level=max(levels.get(tensor, 0) for tensor in step.inputs.values()),
                decoupled=index in decoupled,
            )
        )
    waits = tuple(map(len, awaited))
    chain = [number for number, planned in enumerate(chosen) if planned.decoupled]
    return EnsemblePlan(
        tuple(chosen),
        waits,
        tuple(planned for planned, count in zip(chosen, waits, strict=True) if not count),
        {tensor: tuple(numbers) for tensor, numbers in consumers.items()},
        tuple(outputs),
        tuple(sorted(chain, key=lambda number: chosen[number].level)),
        sum(tensor in made for tensor in outputs),
    )


def origins(ensemble: Ensemble, decoupled: Collection[int]) -> dict[str, tuple[int, ...]]:
    """For each tensor of a step, the indexes of the decoupled steps that it depends on, in order.

    Raises InvalidArgument, in Triton's words, if a step takes tensors of different origins: nothing says
    which of their responses belong together.
    """
    producers = {
        tensor: index for index, step in enumerate(ensemble.steps) for tensor in step.outputs.values()
    }
    found: dict[str, tuple[int, ...]] = {}

    def visit(tensor: str) -> tuple[int, ...]:
        index = producers.get(tensor)
        if index is None:
            return ()
        if tensor not in found:
            step = ensemble.steps[index]
            origin, *others = map(visit, step.inputs.values())
            if any(other != origin for other in others):
                raise InvalidArgument(
                    f"step of model '{step.model}' receives inputs originated from different decoupled models"
                )
            found[tensor] = (*origin, index) if index in decoupled else origin
        return found[tensor]

    for tensor in producers:
        visit(tensor)
    return found
