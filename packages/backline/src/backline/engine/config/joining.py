"""The part of a configuration that says how requests of different shapes can share a batch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

from backline.engine.request_check import RequestCheck
from backline.engine.ticket import Ticket
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Shape

#: The kinds of BatchInput, with Triton's names (inference.BatchInput.Kind).
BatchInputKind: TypeAlias = Literal[
    "BATCH_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT",
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO",
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE",
    "BATCH_ITEM_SHAPE",
    "BATCH_ITEM_SHAPE_FLATTEN",
]


#: The beginning of the names of hidden inputs with the shapes of another input's items, which the backend
#: identity needs.
SHAPES_OF: Final = "shapes of "


class BatchInput(Struct, frozen=True):
    """Inputs of the model (`targets`) that the server computes from the input `source` of each request."""

    kind: BatchInputKind
    targets: tuple[str, ...]
    datatype: DataType
    source: str


class Padding(Struct, frozen=True):
    """The rules for padding an input, so that requests whose inputs differ in length can share a batch.

    `axes` are the dimensions to pad, where 0 is the batch dimension; empty means every variable dimension.
    `value` is the value to pad with, as text; empty means zero. `buckets` are the lengths to which an input
    may be padded, in ascending order; an input longer than the last of them is not padded. Without buckets,
    all inputs are padded to the length of the longest input in the batch, and requests may share a batch if
    their lengths round up to the same power of two. `lengths` and `mask` name inputs that tell the model
    which elements are padding; they are empty if the model has no such inputs. If the model accepts only a
    single length, `buckets` contains only that length, and `most`, the maximum length, equals it; otherwise
    `most` is 0.
    """

    axes: tuple[int, ...] = ()
    value: str = ""
    buckets: tuple[int, ...] = ()
    lengths: str = ""
    mask: str = ""
    most: int = 0

    def length(self, longest: int) -> int:
        """Returns the length to which inputs are padded in a batch whose longest input has the length
        `longest`.
        """
        place = bisect_left(self.buckets, longest)
        return self.buckets[place] if place < len(self.buckets) else longest

    def bucket(self, length: int) -> int:
        """Returns a number that is equal for two lengths if inputs of these lengths may share a batch."""
        return self.length(length) if self.buckets else (length - 1).bit_length()


class Cut(Struct, frozen=True):
    """The rule for how much of the output of a padded batch belongs to a request, given the length of the
    request's input `to`.

    The output is cut along `axis`, where 0 is the batch dimension. A window of `window` input steps moves
    over the input by `hop` steps at a time, and the output has one step for each position where the whole
    window fits. If both are 1, the output has as many steps as the input.
    """

    to: str
    axis: int = 1
    hop: int = 1
    window: int = 1

    def length(self, given: int) -> int:
        """Returns the number of output steps for `given` input steps."""
        return max(0, (given - self.window) // self.hop + 1)


class Joining(Struct, frozen=True):
    """The rules for joining requests of different shapes.

    The inputs named in `ragged` are concatenated into one dimension. `scattered` maps outputs of such batches
    to inputs: each request gets as many elements of the output as the request's own input has. Batches are
    filled up to the smallest sufficient size in `allowed_batch_sizes`, which are in ascending order.
    `padding` has the rules for padding by input, and `cuts` the rules for cutting by output. With `pad_all`,
    every input with a variable dimension is padded.
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
        """The inputs of the model that clients do not send."""
        hidden = {target for batch_input in self.batch_inputs for target in batch_input.targets}
        hidden |= {
            name for padding in self.padding.values() for name in (padding.lengths, padding.mask) if name
        }
        return frozenset(hidden)

    @property
    def padded(self) -> bool:
        """Whether inputs are padded. Padding costs time, so it is then worth looking for requests of similar
        length.
        """
        return self.pad_all or bool(self.padding)

    def batch_size(self, items: int) -> int:
        """Returns the size to which a batch of `items` items is filled up; `items` if no size suffices."""
        place = bisect_left(self.allowed_batch_sizes, items)
        return self.allowed_batch_sizes[place] if place < len(self.allowed_batch_sizes) else items


class JoiningCheck:
    """A check that first runs `check`, and then sets `batch_key` by the rules of `joining`. Each Padding
    in `joining` must name its `axes`.
    """

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
