"""Plans which steps of an ensemble a request needs, and in which order they run. A plan is made once for each
set of requested outputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from backline.engine.config.model_config import Ensemble, EnsembleStep
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Tensor


@dataclass(frozen=True, slots=True)
class StepModel:
    """The properties of a step's model on which the plan depends.

    `ranks` has the number of dimensions of each tensor, including the batch dimension if the model is
    `batched`. `ranks` is empty if the model has not been loaded yet.
    """

    decoupled: bool = False
    batched: bool = False
    ranks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """Returns a tensor of another model as the tensor `name` of this model. If only one of the two models
        has a batch dimension, removes or adds a dimension of size 1.
        """
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
    """A step in a plan, with the outputs that the ensemble needs from the step's model.

    `index` is the index of the step in the configuration. `names` are the outputs to request from the model.
    `targets` maps these outputs to tensors of the ensemble, `outputs` lists the same pairs, and `answers` is
    the number of these tensors that are outputs of the ensemble. `inputs` pairs each input of the model with
    a tensor of the ensemble. `followers` lists the steps that need tensors from this step, by their numbers
    in the plan, each with the number of tensors that it needs. `level` is the number of decoupled steps
    before this step: a step at level 0 runs once, and a step that follows a decoupled step runs for each
    response of the decoupled step.
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
    """The plan for a set of outputs: the steps that are needed to produce these outputs. `consumers` maps
    each tensor to the numbers of the steps that wait for the tensor.

    `waits` has, for each step, the number of tensors that the step needs from other steps; `first` are the
    steps that need no such tensors. `chain` has the numbers of the decoupled steps that the outputs depend
    on, in order. `made` is the number of the ensemble's outputs that steps produce. `repeats` says whether
    several steps have the same model.
    """

    steps: tuple[PlannedStep, ...]
    waits: tuple[int, ...]
    first: tuple[PlannedStep, ...]
    consumers: dict[str, tuple[int, ...]]
    outputs: tuple[str, ...]
    chain: tuple[int, ...] = ()
    made: int = 0
    repeats: bool = False

    @property
    def depth(self) -> int:
        """The level of the outputs. If it is 0, the ensemble sends exactly one response."""
        return len(self.chain)


def plan_ensemble(
    ensemble: Ensemble, outputs: Sequence[str], decoupled: Collection[int] = ()
) -> EnsemblePlan:
    """Returns the plan for some of the ensemble's outputs. As in Triton, steps that are not needed for these
    outputs are left out.

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
        len({planned.step.model for planned in chosen}) < len(chosen),
    )


def origins(ensemble: Ensemble, decoupled: Collection[int]) -> dict[str, tuple[int, ...]]:
    """Returns, for each tensor of a step, the indexes of the decoupled steps that the tensor depends on, in
    order.

    Raises InvalidArgument, with Triton's message, if the inputs of a step depend on different decoupled
    steps, because nothing says which responses of these steps belong together.
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
