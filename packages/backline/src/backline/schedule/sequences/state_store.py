"""Stores the states of sequences, so that sequences can continue after their model version has been loaded
again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Protocol, TypeAlias

from msgspec import Struct

from backline_client.values.tensor import Tensor

#: The state tensors of a sequence, by input name. If the model takes batches, the tensors have a batch
#: dimension of size 1.
State: TypeAlias = Mapping[str, Tensor]
#: The store searches for expired states only if it contains more states than this.
_FEW = 256


class StateKey(Struct, frozen=True):
    """The key of a state. It includes the version of the model, because another version might interpret the
    state differently.
    """

    model: str
    version: str
    sequence: int | str
    #: The caller that began the sequence; only this caller may continue it.
    holder: str = ""


class StateStore(Protocol):
    """A store for the last state of each open sequence.

    The batcher that runs a sequence also keeps the state itself, and writes it to the store after each
    request. A batcher that receives a request of an unknown sequence takes the state from the store. All
    methods must be called on the event loop.
    """

    def put(self, key: StateKey, state: State, seconds: float) -> asyncio.Future[None] | None:
        """Stores a state for at most `seconds`.

        Returns immediately. A store in memory returns None. A remote store writes the states later, in the
        order of the calls, and returns a future that is done when this state has been written. The response
        to the request that left the state is sent only after that. Otherwise another server could continue
        the sequence from an older state, although the client already has the response. If the future raises
        BacklineError, the sequence continues here, but no other server can continue it.
        """

    async def take(self, key: StateKey) -> State | None:
        """Removes and returns a state; None if there is none. Raises BacklineError if the store does not
        respond.
        """

    def drop(self, key: StateKey) -> None:
        """Removes a state, if there is one, because the sequence has ended."""


class MemoryStateStore:
    """A store that keeps states in the memory of this process."""

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
