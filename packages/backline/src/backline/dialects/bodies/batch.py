"""The batch dimension in bodies, which clients may leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backline.engine.model import Model
from backline_client.values.tensor import Tensor


def fitted(model: Model, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Returns the inputs reshaped to the model's ranks, and whether the client left out the batch dimension.

    A value without dimensions fits any shape with a single element.
    """
    specs = {spec.name: spec for spec in model.signature.inputs}
    inputs, added, kept = {}, False, False
    for name, tensor in given.items():
        rank, shape = len(specs[name].shape), tensor.shape
        if not shape and rank:
            shape = (1,) * rank
            added = added or bool(model.max_batch_size)
        elif model.max_batch_size and len(shape) == rank - 1:
            shape, added = (1, *shape), True
        else:
            kept = True
        inputs[name] = Tensor(name, tensor.datatype, shape, tensor.data.reshape(shape))
    return inputs, added and not kept


def without_batch(outputs: Sequence[Tensor]) -> list[Tensor]:
    """Returns the outputs without a batch dimension of 1, for a request that left it out."""
    return [
        Tensor(one.name, one.datatype, one.shape[1:], one.data.reshape(one.shape[1:]))
        if one.shape and one.shape[0] == 1
        else one
        for one in outputs
    ]
