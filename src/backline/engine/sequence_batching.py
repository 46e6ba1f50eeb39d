"""How the requests of sequences are run together, as a configuration asks for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from backline.engine.datatypes import DataType
from backline.engine.tensor import Shape

ControlKind: TypeAlias = Literal["start", "end", "ready", "id"]
Strategy: TypeAlias = Literal["direct", "oldest"]


@dataclass(frozen=True, slots=True)
class SequenceControl:
    """An input that tells the model where in its sequence a request is: a tensor of one element, which no client sends.

    `values` are the ones for no and yes; the id has none.
    """

    kind: ControlKind
    name: str
    datatype: DataType
    values: tuple[int | float | bool, ...] = ()


@dataclass(frozen=True, slots=True)
class SequenceState:
    """A tensor that the model gives with every answer and gets back with the next request of the same sequence.

    Shapes are without the batch dimension. The first request gets `initial_shape` of zeros, or of what `initial_file` holds, the name of a
    file below initial_state/ in the model's folder.
    """

    input: str
    output: str
    datatype: DataType
    shape: Shape
    initial_shape: Shape
    initial_file: str = ""


@dataclass(frozen=True, slots=True)
class SequenceBatching:
    """Sequences, and how their requests are joined: times in microseconds.

    "direct" keeps each sequence in one place of the batch of one instance. Such a batch is run when `minimum_slot_utilization` of its
    places have a request, or one has waited for `max_queue_delay_us`. "oldest" joins requests of `max_candidates` sequences an instance
    (0: as many as fit into a batch) like any others, the sequences that began first first. A sequence ends when no request of it came
    for `idle_us`. With `iterative` a request is a sequence of its own, which the model has again and again until it answers.
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
        """The inputs of the model that no client sends."""
        return frozenset(control.name for control in self.controls) | frozenset(
            state.input for state in self.states
        )
