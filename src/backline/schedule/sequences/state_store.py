"""Where the state of sequences lies, so that it outlives the load of a version that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Protocol, TypeAlias

from backline.engine.tensor import Tensor

#: The state tensors of a sequence by the name of the model's input, with a batch dimension of 1 where the model has batches.
State: TypeAlias = Mapping[str, Tensor]
#: States that a store in memory holds before it looks for those whose time is over.
_FEW = 256


@dataclass(frozen=True, slots=True)
class StateKey:
    """Whose state it is: another version of the model would read it in another way."""

    model: str
    version: str
    sequence: int | str


class StateStore(Protocol):
    """Keeps the last state of every open sequence. Who runs a sequence has its state at hand, and writes here what each request has made
    of it; who gets a request of a sequence that he does not know takes it over from here. Lives on the event loop.
    """

    def put(self, key: StateKey, state: State, seconds: float) -> None:
        """Keeps a state for `seconds` at most. Returns at once: a store elsewhere writes after that, in the order of the calls."""

    async def take(self, key: StateKey) -> State | None:
        """Gives a state away to who goes on with the sequence, None if there is none. Raises BacklineError when it cannot tell."""

    def drop(self, key: StateKey) -> None:
        """Forgets a state, if there is one: its sequence has ended."""


class MemoryStateStore:
    """A store in this process."""

    def __init__(self) -> None:
        self._states: dict[StateKey, tuple[State, float]] = {}
        self._look_at = _FEW

    def __len__(self) -> int:
        return len(self._states)

    def put(self, key: StateKey, state: State, seconds: float) -> None:
        """See StateStore."""
        states = self._states
        states[key] = (state, monotonic() + seconds)
        if len(states) > self._look_at:
            now = monotonic()
            self._states = {key: kept for key, kept in states.items() if kept[1] > now}
            self._look_at = max(_FEW, 2 * len(self._states))

    async def take(self, key: StateKey) -> State | None:
        """See StateStore."""
        state, end = self._states.pop(key, (None, 0.0))
        return state if end > monotonic() else None

    def drop(self, key: StateKey) -> None:
        """See StateStore."""
        self._states.pop(key, None)
