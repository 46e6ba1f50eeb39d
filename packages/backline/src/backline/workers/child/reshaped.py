"""Tensors whose shape in the model differs from their shape at the server, because of a configured
`reshape`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from backline.engine.config.reshape import Reshape, Reshapes, narrower, reshape_tensor
from backline.workers.channel.protocol import Parameter, Spec, WorkerLoad, WorkerLoaded
from backline.workers.child.requests import Outputs, RequestBatch, WorkerRequest
from backline_client.values.errors import Internal, InvalidArgument


@dataclass(frozen=True, slots=True)
class Shapes:
    """The inputs or outputs of a model as the server sees them, and their reshapes in both directions."""

    specs: list[Spec]
    to_model: Reshapes
    to_server: Reshapes


def is_reshaped(load: WorkerLoad) -> bool:
    """Returns whether the configuration reshapes any tensor."""
    return any(spec.reshape is not None for spec in (*load.inputs, *load.outputs))


def shapes_of(load: WorkerLoad, loaded: WorkerLoaded) -> tuple[Shapes, Shapes]:
    """Returns a model's inputs and outputs. Raises InvalidArgument if their shapes contradict the
    configuration.
    """
    batch = (-1,) if loaded.max_batch_size else ()
    joining = load.joining if loaded.joins else None
    # A ragged input is flat in the model, but batch inputs describe the shape that the input had before it
    # was flattened.
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
        if spec is not said:  # the shapes come from the model's type hints, not from the configuration
            fitting = narrower(shape, tuple(spec.shape))
            if fitting is None:
                raise InvalidArgument(
                    f"{kind} '{spec.name}' has the reshape {list(shape)} in its configuration,"
                    f" but the shape {spec.shape} in the model"
                )
            seen = Reshape(shape, seen).shape(spec.name, fitting)
        specs.append(msgspec.structs.replace(spec, shape=list(seen), reshape=None))
    return Shapes(specs, to_model, to_server)


class ReshapedBatch(RequestBatch):
    """A batch that reshapes the model's outputs to their shapes at the server."""

    def __init__(self, outputs: Reshapes, *given: Any) -> None:
        super().__init__(*given)
        self._outputs = outputs

    def answer(
        self,
        requests: Sequence[WorkerRequest],
        outputs: Outputs,
        parameters: Mapping[str, Parameter] | None = None,
    ) -> None:
        """Responds with reshaped outputs. If an output cannot be reshaped, fails the request or, if there are
        several requests, raises Internal.
        """
        try:
            outputs = self._reshaped(outputs)
        except Internal as error:
            if len(requests) > 1:
                raise
            self.fail(requests[0], error)
            return
        super().answer(requests, outputs, parameters)

    def send(
        self, request: WorkerRequest, outputs: Outputs, parameters: Mapping[str, Parameter] | None
    ) -> None:
        """Sends reshaped outputs. Fails the request if an output cannot be reshaped."""
        try:
            outputs = self._reshaped(outputs)
        except Internal as error:
            self.fail(request, error)
            return
        super().send(request, outputs, parameters)

    def _reshaped(self, outputs: Outputs) -> Outputs:
        return [reshape_tensor(tensor, self._outputs) for tensor in outputs]
