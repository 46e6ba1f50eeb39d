"""The controls and states of sequences. These are tensors that are added to the requests of a sequence;
states are also removed from the responses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import numpy as np

from backline.engine.config.sequence_batching import SequenceBatching, SequenceControl
from backline.schedule.sequences.state_store import State, StateKey, StateStore
from backline.schedule.sequences.table import LiveSequence, SequenceTable
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.messages import InferResponse, SequenceStep
from backline_client.values.tensor import Shape, Tensor


class SequenceTensors:
    """The controls and states of a model.

    `initial` has the states at the start of a sequence, by input name. `batched` says whether tensors have a
    batch dimension; its size is 1, because a request of a sequence has one item. `served` has the outputs
    that clients may see.
    """

    def __init__(
        self, model: str, batching: SequenceBatching, initial: State, *, batched: bool, served: frozenset[str]
    ) -> None:
        #: Whether each request is a complete sequence, for which the model is run again and again until the
        #: model says that it is done.
        self.iterative = batching.iterative
        self._model = model
        self._initial = initial
        self._outputs = {state.output: state.input for state in batching.states}
        self._served = served
        self._state_shapes_vary = any(-1 in state.shape for state in batching.states)
        shape: Shape = (1, 1) if batched else (1,)
        self._flags: list[tuple[str, str, Tensor, Tensor]] = []
        self._ids: list[tuple[SequenceControl, Shape]] = []
        for control in batching.controls:
            if control.kind == "id":
                self._ids.append((control, shape))
                continue
            no, yes = (_filled(control, shape, value) for value in control.values)
            self._flags.append((control.kind, control.name, no, yes))

    @property
    def has_states(self) -> bool:
        return bool(self._outputs)

    def check_id(self, step: SequenceStep) -> None:
        """Raises InvalidArgument if the datatype of the model's input for the id cannot represent the id."""
        for control, _ in self._ids:
            if control.datatype is DataType.BYTES:
                continue
            kind = (
                f"input '{control.name}' of model '{self._model}', whose datatype is {control.datatype.name}"
            )
            if isinstance(step.id, str):
                raise InvalidArgument(
                    f"the sequence ID '{step.id}' is a string and does not fit {kind}; send an integer"
                )
            if step.id > np.iinfo(control.datatype.dtype).max:
                raise InvalidArgument(
                    f"the sequence ID {step.id} is too large for {kind}; send a smaller one"
                )

    def add(self, inputs: dict[str, Tensor], step: SequenceStep, state: State | None) -> None:
        """Adds the controls to the inputs of a request, and the `state` that the previous request of the
        sequence left.
        """
        for kind, name, no, yes in self._flags:
            applies = kind == "ready" or (kind == "start" and step.start) or (kind == "end" and step.end)
            inputs[name] = yes if applies else no
        for control, shape in self._ids:
            value = str(step.id).encode() if control.datatype is DataType.BYTES else step.id
            inputs[control.name] = _filled(control, shape, value)
        if self._outputs:
            inputs.update(self._initial if state is None or step.start else state)

    def outputs(self, wanted: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """Returns the outputs to request from the model: the outputs that the caller wants (None for all),
        and the states.
        """
        if wanted is None:
            return None
        return (*wanted, *(name for name in self._outputs if name not in wanted))

    def batch_key(self, key: object, inputs: Mapping[str, Tensor]) -> object:
        """Returns the batch key of a request with the shapes of its states added, because states of different
        shapes cannot share a batch.
        """
        if not self._state_shapes_vary:
            return key
        return key, tuple(inputs[name].shape for name in self._outputs.values())

    def empty(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns the inputs for an empty slot: zeros with the shapes of the inputs of another request, and
        controls that say that the slot is not ready.
        """
        zeros = {
            name: Tensor(name, tensor.datatype, tensor.shape, _blank(tensor.datatype, tensor.shape))
            for name, tensor in like.items()
        }
        return zeros | {name: no for _, name, no, _ in self._flags}

    def take_state(self, response: InferResponse, wanted: tuple[str, ...] | None) -> State | None:
        """Removes the states from a response to a request for the outputs `wanted` (None for all), and
        returns the states.

        Returns None if the model has no states. Raises Internal if the response lacks a state.
        """
        if not self._outputs:
            return None
        state: dict[str, Tensor] = {}
        kept = []
        for tensor in response.outputs:
            name = self._outputs.get(tensor.name)
            if name is not None:
                # The tensor is a view of the output of a whole batch. Without this copy, the whole output
                # would stay in memory for as long as the sequence is open.
                data = np.array(tensor.data)
                state[name] = Tensor(name, tensor.datatype, data.shape, data)
            if tensor.name in self._served if wanted is None else tensor.name in wanted:
                kept.append(tensor)
        if len(state) < len(self._outputs):
            missing = ", ".join(f"'{output}'" for output, name in self._outputs.items() if name not in state)
            raise Internal(f"model '{self._model}' did not return the state {missing}")
        response.outputs = kept
        return state


class SequenceStates:
    """Keeps the state of each sequence for its next request. All methods must be called on the event loop.

    The state is kept in the LiveSequence. While the sequence is open, `store` also keeps the state, for
    `seconds` seconds after each request, so that another load or another server can continue the sequence.
    Nothing is stored for models without states.
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

    def take_out(
        self, sequence: LiveSequence, response: InferResponse, wanted: tuple[str, ...] | None
    ) -> asyncio.Future[None] | None:
        """Moves the state from a response to a request for the outputs `wanted` (None for all) into the
        sequence.

        Returns a future if the store has not written the state yet. Raises Internal if the model has left out
        a part of the state.
        """
        state = self._tensors.take_state(response, wanted)
        if state is None:
            return None
        sequence.state = state
        if self._is_open(sequence):
            return self._store.put(self._key(sequence), state, self._seconds)
        return None

    async def take_over(self, sequence: LiveSequence) -> None:
        """Fetches the state that another load of this version, or another server, has stored for a sequence.

        Raises BacklineError if the store does not respond.
        """
        state = sequence.state = await self._store.take(self._key(sequence))
        # `take` removed the state from the store. It is stored again while the sequence is open, because
        # perhaps no request of the sequence will run here.
        if state is not None and (sequence.waiting or not sequence.ended):
            stored = self._store.put(self._key(sequence), state, self._seconds)
            if stored is not None:
                await stored

    def forget(self, sequence: LiveSequence) -> None:
        """Removes from the store the state of a sequence that has ended or is being restarted. Does not
        remove the state of a newer sequence with the same id.
        """
        if self._tensors.has_states and (self._is_open(sequence) or sequence.id not in self._table.open):
            self._store.drop(self._key(sequence))

    def forget_if_over(self, sequence: LiveSequence) -> None:
        """Removes the state of a sequence that has ended and has no more requests to run."""
        if sequence.over:
            self.forget(sequence)

    def _is_open(self, sequence: LiveSequence) -> bool:
        return self._table.open.get(sequence.id) is sequence

    def _key(self, sequence: LiveSequence) -> StateKey:
        return StateKey(self._model, self._version, sequence.id, sequence.holder)


def initial_state(batching: SequenceBatching, files: Mapping[str, np.ndarray], *, batched: bool) -> State:
    """Returns the states at the start of a sequence. `files` has the contents of the files with initial
    states, by input name.
    """
    states = {}
    for state in batching.states:
        data = files.get(state.input)
        if data is None:
            data = _blank(state.datatype, state.initial_shape)
        if batched:
            data = data[np.newaxis]
        states[state.input] = Tensor(state.input, state.datatype, data.shape, data)
    return states


def _blank(datatype: DataType, shape: Shape) -> np.ndarray:
    return np.full(shape, b"", np.object_) if datatype is DataType.BYTES else np.zeros(shape, datatype.dtype)


def _filled(control: SequenceControl, shape: Shape, value: object) -> Tensor:
    data = np.empty(shape, control.datatype.dtype)
    data.fill(value)
    return Tensor(control.name, control.datatype, shape, data)
