"""The part of a configuration that says how requests of sequences are batched."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from backline.engine.values.datatypes import DataType
from backline.engine.values.tensor import Shape

ControlKind: TypeAlias = Literal["start", "end", "ready", "id"]
Strategy: TypeAlias = Literal["direct", "oldest"]


@dataclass(frozen=True, slots=True)
class SequenceControl:
    """An input, not sent by clients, that tells the model about a request's place in its sequence: a tensor
    with one element.

    `values` are the element's values for false and for true; the control that carries the id has none.
    """

    kind: ControlKind
    name: str
    datatype: DataType
    values: tuple[int | float | bool, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A tensor that the model returns with every response and receives with the next request of the sequence.

    Shapes are without the batch dimension. The first request gets zeros of `initial_shape`, or the contents
    of `initial_file`, a file below initial_state/ in the model's folder.
    """

    input: str
    output: str
    datatype: DataType
    shape: Shape
    initial_shape: Shape
    initial_file: str = ""


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """How sequences are batched. Times are in microseconds.

    "direct" keeps each sequence in a fixed slot of one instance's batches. A batch runs when the fraction
    `minimum_slot_utilization` of the slots have a request, or one has waited for `max_queue_delay_us`.
    "oldest" batches requests of up to `max_candidates` sequences per instance (0: as many as fit into a
    batch) as usual, oldest sequences first. A sequence ends after `idle_us` without a request. With
    `iterative`, each request is a whole sequence, which runs again and again until the model responds.
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
