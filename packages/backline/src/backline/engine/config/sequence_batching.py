"""The part of a configuration that says how the requests of sequences are batched."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from backline_client.values.datatypes import DataType
from backline_client.values.tensor import Shape

ControlKind: TypeAlias = Literal["start", "end", "ready", "id"]
Strategy: TypeAlias = Literal["direct", "oldest"]


class SequenceControl(Struct, frozen=True):
    """An input that tells the model about a request's place in its sequence. It is a tensor with one element,
    which clients do not send.

    `values` are the values of the element for false and for true; they are empty for the control with the id
    of the sequence.
    """

    kind: ControlKind
    name: str
    datatype: DataType
    values: tuple[int | float | bool, ...] = ()


class SequenceState(Struct, frozen=True):
    """A tensor that the model returns with every response, and receives again with the next request of the
    sequence.

    Shapes are without the batch dimension. With the first request, the model receives zeros of
    `initial_shape`, or the contents of `initial_file`, a file below initial_state/ in the model's folder.
    """

    input: str
    output: str
    datatype: DataType
    shape: Shape
    initial_shape: Shape
    initial_file: str = ""


class SequenceBatching(Struct, frozen=True):
    """The rules for batching sequences. Times are in microseconds.

    With the strategy "direct", each sequence has a fixed slot in the batches of one instance. A batch runs
    when the fraction `minimum_slot_utilization` of the slots have a request, or when a request has waited for
    `max_queue_delay_us`. With "oldest", the requests of up to `max_candidates` sequences per instance are
    batched like other requests, oldest sequences first; if `max_candidates` is 0, their number is the maximum
    batch size. A sequence ends after `idle_us` without a request. With `iterative`, each request is a whole
    sequence, and is run repeatedly until the model does not ask for another run.
    """

    strategy: Strategy = "direct"
    idle_us: int = 1_000_000
    controls: tuple[SequenceControl, ...] = ()
    states: tuple[SequenceState, ...] = ()
    max_candidates: int = 0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_delay_us: int = 0
    minimum_slot_utilization: float = 0.0
    preserve_ordering: bool = False
    iterative: bool = False

    @property
    def hidden_inputs(self) -> frozenset[str]:
        """The model's inputs that clients do not send."""
        return frozenset(control.name for control in self.controls) | frozenset(
            state.input for state in self.states
        )
