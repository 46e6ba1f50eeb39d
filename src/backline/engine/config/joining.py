"""How requests of different shapes are run together, as configured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from backline.engine.errors import InvalidArgument
from backline.engine.ticket import Ticket
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import RequestCheck
from backline.engine.values.tensor import Shape

#: The kinds of BatchInput, by Triton's names (inference.BatchInput.Kind).
BatchInputKind: TypeAlias = Literal[
    "BATCH_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "BATCH_ITEM_SHAPE",
    "BATCH_ITEM_SHAPE_FLATTEN",
]


@dataclass(frozen=True, slots=True)
class BatchInput:
    """Inputs of the model (`targets`) that the server computes from the input `source` of each request."""

    kind: BatchInputKind
    targets: tuple[str, ...]
    datatype: DataType
    source: str


@dataclass(frozen=True, slots=True)
class Padding:
    """How an input is padded to the length of others in its batch.

    `axes` are the padded dimensions, with the batch as 0; empty for all variable ones. `value` is the text of
    the filler, empty for zero. `buckets` are the possible lengths, ascending; without them it is the longest
    of the batch, and only requests within a factor of two are joined. The model's inputs `lengths` and `mask`
    mark what is not padding. A model of one fixed length has that as `most` and as its bucket.
    """

    axes: tuple[int, ...] = ()
    value: str = ""
    buckets: tuple[int, ...] = ()
    lengths: str = ""
    mask: str = ""
    most: int = 0

    def length(self, longest: int) -> int:
        """The padded length in a batch whose longest input has this length."""
        place = bisect_left(self.buckets, longest)
        return self.buckets[place] if place < len(self.buckets) else longest

    def bucket(self, length: int) -> int:
        """A number that is equal for lengths that may be joined: by bucket, or else by power of two."""
        return self.length(length) if self.buckets else (length - 1).bit_length()


@dataclass(frozen=True, slots=True)
class Cut:
    """How an output of a padded batch is cut for each request, by the length of the request's input `to`.

    `axis` counts the batch as 0. The model gives one step for every `hop` input steps after the first
    `window`; with 1 and 1, as many steps
    as the input has.
    """

    to: str
    axis: int = 1
    hop: int = 1
    window: int = 1

    def length(self, given: int) -> int:
        """The output steps for this many input steps."""
        return max(0, (given - self.window) // self.hop + 1)


@dataclass(frozen=True, slots=True)
class Joining:
    """How requests of different shapes are joined.

    `ragged` inputs are concatenated into one dimension. `scattered` maps outputs of such batches to
    inputs: each request gets as many elements of the output as it has in the input. `allowed_batch_sizes` are
    ascending; batches are filled up to the next one. `padding` is by input, `pad_all` means every variable
    input; `cuts` are by output.
    """

    ragged: tuple[str, ...] = ()
    batch_inputs: tuple[BatchInput, ...] = ()
    scattered: Mapping[str, str] = field(default_factory=dict)
    allowed_batch_sizes: tuple[int, ...] = ()
    pad_all: bool = False
    padding: Mapping[str, Padding] = field(default_factory=dict)
    cuts: Mapping[str, Cut] = field(default_factory=dict)

    @property
    def hidden_inputs(self) -> frozenset[str]:
        """Inputs of the model that clients do not send."""
        hidden = {target for batch_input in self.batch_inputs for target in batch_input.targets}
        hidden |= {
            name for padding in self.padding.values() for name in (padding.lengths, padding.mask) if name
        }
        return frozenset(hidden)

    @property
    def padded(self) -> bool:
        """Whether padding costs time, so that it pays to look for requests of similar length."""
        return self.pad_all or bool(self.padding)

    def batch_size(self, items: int) -> int:
        """The size to which a batch of this many items is filled up."""
        place = bisect_left(self.allowed_batch_sizes, items)
        return self.allowed_batch_sizes[place] if place < len(self.allowed_batch_sizes) else items


class JoiningCheck:
    """Runs `check`, then sets `batch_key` according to `joining`, whose padding must name its `axes`."""

    def __init__(self, check: RequestCheck, joining: Joining, inputs: tuple[str, ...]) -> None:
        self._check = check
        self._ragged = frozenset(joining.ragged)
        self._padding = joining.padding
        self._limits = [
            (name, padding.axes[0], padding.most) for name, padding in joining.padding.items() if padding.most
        ]
        self._inputs = inputs

    def __call__(self, ticket: Ticket) -> None:
        """Raises InvalidArgument if the request does not fit the model."""
        self._check(ticket)
        request = ticket.request
        inputs = request.inputs
        for name, axis, most in self._limits:
            if name in inputs and inputs[name].shape[axis] > most:
                raise InvalidArgument(
                    f"[request id: {request.id or '<id_unknown>'}] input '{name}' of model"
                    f" '{request.model_name}' has shape {list(inputs[name].shape)}, but it may have at most"
                    f" {most} in dimension {axis}"
                )
        ticket.batch_key = tuple(
            (name, self._kind(name, inputs[name].shape)) for name in self._inputs if name in inputs
        )

    def _kind(self, name: str, shape: Shape) -> Shape:
        if name in self._ragged:
            return ()
        padding = self._padding.get(name)
        if padding is None:
            return shape[1:]
        return tuple(
            padding.bucket(dim) if axis in padding.axes else dim for axis, dim in enumerate(shape) if axis
        )
