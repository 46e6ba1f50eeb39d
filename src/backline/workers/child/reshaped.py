"""Which inputs and outputs a model has in other shapes than the server: what its configuration reshapes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from backline.engine.errors import InvalidArgument
from backline.engine.reshape import Reshape, Reshapes, narrower
from backline.workers.channel.protocol import Spec, WorkerLoad, WorkerLoaded


@dataclass(frozen=True, slots=True)
class Shapes:
    """The inputs or the outputs of a model as the server sees them, and how their shapes are changed on the way."""

    specs: list[Spec]
    to_model: Reshapes
    to_server: Reshapes


def is_reshaped(load: WorkerLoad) -> bool:
    """Whether the configuration reshapes anything."""
    return any(spec.reshape is not None for spec in (*load.inputs, *load.outputs))


def shapes_of(load: WorkerLoad, loaded: WorkerLoaded) -> tuple[Shapes, Shapes]:
    """The inputs and the outputs of a model. Raises InvalidArgument where its own shape contradicts its configuration."""
    batch = (-1,) if loaded.max_batch_size else ()
    joining = load.joining if loaded.joins else None
    # What is laid end to end has one dimension in the model, which is told of the shape that it would have had.
    ragged, scattered = ((), ()) if joining is None else (joining.ragged, joining.scattered)
    inputs = _shapes("input", loaded.inputs, load.inputs, ragged, batch)
    return inputs, _shapes("output", loaded.outputs, load.outputs, scattered, batch)


def _shapes(
    kind: Literal["input", "output"],
    own: Sequence[Spec],
    configured: Sequence[Spec],
    flat: Collection[str],
    batch: tuple[int, ...],
) -> Shapes:
    given = {spec.name: spec for spec in configured if spec.reshape is not None}
    specs: list[Spec] = []
    to_model: dict[str, Reshape] = {}
    to_server: dict[str, Reshape] = {}
    for spec in own:
        said = given.get(spec.name)
        if said is None or said.reshape is None:
            specs.append(spec)
            continue
        seen, shape = tuple(said.shape), tuple(said.reshape)
        to_model[spec.name] = Reshape((*batch, *seen), (*batch, *shape))
        if spec.name in flat:
            specs.append(spec)
            continue
        to_server[spec.name] = Reshape((*batch, *shape), (*batch, *seen))
        if spec is not said:  # the model says itself what it has, by its type hints
            fitting = narrower(shape, tuple(spec.shape))
            if fitting is None:
                raise InvalidArgument(
                    f"{kind} '{spec.name}' has the reshape {list(shape)} in its configuration, but {spec.shape} in the model"
                )
            seen = Reshape(shape, seen).shape(spec.name, fitting)
        specs.append(msgspec.structs.replace(spec, shape=list(seen), reshape=None))
    return Shapes(specs, to_model, to_server)
