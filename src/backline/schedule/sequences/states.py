"""The states of the sequences of one model version: where they are taken from, and where they are left."""

from __future__ import annotations

from backline.engine.messages import InferResponse
from backline.schedule.sequences.state_store import StateKey, StateStore
from backline.schedule.sequences.table import Sequence, SequenceTable
from backline.schedule.sequences.tensors import SequenceTensors


class SequenceStates:
    """What each request of a sequence leaves for the next one. Lives on the event loop.

    A sequence has its state at hand. While it is open `store` has it too, for `seconds` behind each request: for whoever goes on with it.
    Of a model without states nothing is kept.
    """

    def __init__(
        self,
        model: str,
        version: str,
        tensors: SequenceTensors,
        table: SequenceTable,
        store: StateStore,
        *,
        seconds: float,
    ) -> None:
        self._model = model
        self._version = version
        self._tensors = tensors
        self._table = table
        self._store = store
        self._seconds = seconds

    def take_out(self, sequence: Sequence, response: InferResponse, wanted: tuple[str, ...] | None) -> None:
        """Keeps what a response to a request for the outputs `wanted` (None for all) has of the state, which who asked does not get.

        Raises Internal when the model has left a part of it out.
        """
        state = self._tensors.take_state(response, wanted)
        if state is None:
            return
        sequence.state = state
        if self._is_open(sequence):
            self._store.put(self._key(sequence), state, self._seconds)

    async def take_over(self, sequence: Sequence) -> None:
        """Fetches what another load of this version, or another server, has left of a sequence; it has no state if there is nothing.

        Raises BacklineError when the store cannot tell.
        """
        state = sequence.state = await self._store.take(self._key(sequence))
        if state is not None and (
            sequence.waiting or not sequence.ended
        ):  # it is open, and nothing of it may ever run here
            self._store.put(self._key(sequence), state, self._seconds)

    def forget(self, sequence: Sequence) -> None:
        """Its state is of no use to anybody: it begins again, or has ended. What has begun since with its id keeps its own."""
        if self._tensors.has_states and (self._is_open(sequence) or sequence.id not in self._table.open):
            self._store.drop(self._key(sequence))

    def forget_if_over(self, sequence: Sequence) -> None:
        """Nothing more of a sequence comes, and nothing waits or runs."""
        if sequence.ended and not sequence.waiting and sequence.running is None:
            self.forget(sequence)

    def _is_open(self, sequence: Sequence) -> bool:
        return self._table.open.get(sequence.id) is sequence

    def _key(self, sequence: Sequence) -> StateKey:
        return StateKey(self._model, self._version, sequence.id)
