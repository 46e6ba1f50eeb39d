"""What an ensemble has to know of the models of its steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from backline.engine.tensor import Tensor


@dataclass(frozen=True, slots=True)
class StepModel:
    """What an ensemble has to know of the model of a step: whether it gives any number of responses, and the ranks of its tensors.

    `ranks` count the batch dimension, which there is if it is `batched`; empty where the model has not been loaded yet.
    """

    decoupled: bool = False
    batched: bool = False
    ranks: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({}))

    def fit(self, name: str, tensor: Tensor) -> Tensor:
        """A tensor on its way between models of which only one has batches: a batch of one gets its dimension, or loses it."""
        rank, shape = self.ranks.get(name), tensor.shape
        if rank is None or rank == len(shape):
            fitting = shape
        elif self.batched and rank == len(shape) + 1:
            fitting = (1, *shape)
        elif not self.batched and rank == len(shape) - 1 and shape[0] == 1:
            fitting = shape[1:]
        else:
            fitting = shape  # its model says what is wrong
        return Tensor(
            name, tensor.datatype, fitting, tensor.data if fitting is shape else tensor.data.reshape(fitting)
        )
