"""Stores the states of sequences, so that sequences can continue after their version is loaded again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeAlias

from backline.engine.values.tensor import Tensor

#: The state tensors of a sequence, by input name; with a batch dimension of 1 if the model has batches.
State: TypeAlias = Mapping[str, Tensor]
#: The store looks for expired states only if it holds more states than this.
_FEW = 256


@dataclass(frozen=True, slots=True)
class StateKey:
    """Identifies a state. Versions do not share states: another version might read them differently."""

    model: str
    version: str
    sequence: int | str
    #: The caller that began the sequence; only this caller may continue it.
    holder: str = ""


class StateStore(Protocol):
    """Keeps the last state of every open sequence.

    The batcher that runs a sequence also holds its state, and writes it here after each request. A batcher
    that receives a request of an unknown sequence takes the state from here. All methods must be called on
    the event loop.
    """

    def put(self, key: StateKey, state: State, seconds: float) -> None:
        """Stores a state for at most `seconds`.

        Returns at once. A remote store writes the states later, in the order of the calls.
        """

    async def take(self, key: StateKey) -> State | None:
        """Removes and returns a state, or None. Raises BacklineError if the store does not respond."""

    def drop(self, key: StateKey) -> None:
        """Forgets a state, if there is one, because the sequence has ended."""


class MemoryStateStore:
    """Keeps states in the memory of this process."""

    def __init__(self) -> None:
        self._states: dict[StateKey, tuple[State, float]] = {}
        self._look_at = _FEW

    def __len__(self) -> int:
        return len(self._states)

    def put(self, key: StateKey, state: State, seconds: float) -> None:
        states = self._states
        states[key] = (state, monotonic() + seconds)
        if len(states) > self._look_at:
            now = monotonic()
            self._states = {key: kept for key, kept in states.items() if kept[1] > now}
            self._look_at = max(_FEW, 2 * len(self._states))

    async def take(self, key: StateKey) -> State | None:
        state, end = self._states.pop(key, (None, 0.0))
        return state if end > monotonic() else None

    def drop(self, key: StateKey) -> None:
        self._states.pop(key, None)
