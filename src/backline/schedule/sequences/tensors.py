"""The tensors that a request of a sequence gets on its way to the model, and loses on its way back: controls and states."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backline.engine.datatypes import DataType
from backline.engine.errors import Internal, InvalidArgument
from backline.engine.messages import InferResponse, SequenceStep
from backline.engine.sequence_batching import SequenceBatching, SequenceControl
from backline.engine.tensor import Shape, Tensor
from backline.schedule.sequences.state_store import State, StateKey, StateStore
from backline.schedule.sequences.table import LiveSequence, SequenceTable


class SequenceTensors:
    """The controls and states of one model.

    `initial` are the states of a sequence that begins, by input; `batched` says that tensors have a batch dimension, of 1 here; `served`
    are the outputs that clients may see.
    """

    def __init__(
        self, model: str, batching: SequenceBatching, initial: State, *, batched: bool, served: frozenset[str]
    ) -> None:
        self._iterative = batching.iterative
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
    def iterative(self) -> bool:
        """Whether each request is a sequence of its own, of as many runs as the model wants."""
        return self._iterative

    @property
    def has_states(self) -> bool:
        return bool(self._outputs)

    def check_id(self, step: SequenceStep) -> None:
        """Raises InvalidArgument when the model's input for the id cannot hold it."""
        for control, _ in self._ids:
            if control.datatype is DataType.BYTES:
                continue
            kind = (
                f"input '{control.name}' of model '{self._model}', which takes it as {control.datatype.name}"
            )
            if isinstance(step.id, str):
                raise InvalidArgument(f"the sequence ID '{step.id}' is a text and does not fit {kind}")
            if step.id > np.iinfo(control.datatype.dtype).max:
                raise InvalidArgument(f"the sequence ID {step.id} is too large for {kind}")

    def add(self, inputs: dict[str, Tensor], step: SequenceStep, state: State | None) -> None:
        """Adds what the model needs to know of the sequence; `state` is what the request before has left."""
        for kind, name, no, yes in self._flags:
            inputs[name] = (
                yes
                if kind == "ready" or (kind == "start" and step.start) or (kind == "end" and step.end)
                else no
            )
        for control, shape in self._ids:
            value = str(step.id).encode() if control.datatype is DataType.BYTES else step.id
            inputs[control.name] = _filled(control, shape, value)
        if self._outputs:
            inputs.update(self._initial if state is None or step.start else state)

    def outputs(self, wanted: tuple[str, ...] | None) -> tuple[str, ...] | None:
        """The outputs to ask the model for: those the caller wants, and the states."""
        if wanted is None:
            return None
        return (*wanted, *(name for name in self._outputs if name not in wanted))

    def batch_key(self, key: object, inputs: Mapping[str, Tensor]) -> object:
        """The batch key of a request with its states: requests whose states differ in shape cannot share a batch."""
        if not self._state_shapes_vary:
            return key
        return key, tuple(inputs[name].shape for name in self._outputs.values())

    def empty(self, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inputs of a place in a batch without a request: zeros of the shapes that another request has, and not ready."""
        return {name: _zeros(tensor) for name, tensor in like.items()} | {
            name: no for _, name, no, _ in self._flags
        }

    def take_state(self, response: InferResponse, wanted: tuple[str, ...] | None) -> State | None:
        """Takes the states out of a response to a request for the outputs `wanted` (None for all); None for a model without.

        Raises Internal when the model has left one out.
        """
        if not self._outputs:
            return None
        state: dict[str, Tensor] = {}
        kept = []
        for tensor in response.outputs:
            name = self._outputs.get(tensor.name)
            if name is not None:
                # A copy: the answer is but a part of a batch, which need not live as long as the sequence.
                data = np.array(tensor.data)
                state[name] = Tensor(name, tensor.datatype, data.shape, data)
            if tensor.name in self._served if wanted is None else tensor.name in wanted:
                kept.append(tensor)
        if len(state) < len(self._outputs):
            missing = ", ".join(f"'{output}'" for output, name in self._outputs.items() if name not in state)
            raise Internal(f"model '{self._model}' has left out the state {missing}")
        response.outputs = kept
        return state


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

    def take_out(
        self, sequence: LiveSequence, response: InferResponse, wanted: tuple[str, ...] | None
    ) -> None:
        """Keeps what a response to a request for the outputs `wanted` (None for all) has of the state, which who asked does not get.

        Raises Internal when the model has left a part of it out.
        """
        state = self._tensors.take_state(response, wanted)
        if state is None:
            return
        sequence.state = state
        if self._is_open(sequence):
            self._store.put(self._key(sequence), state, self._seconds)

    async def take_over(self, sequence: LiveSequence) -> None:
        """Fetches what another load of this version, or another server, has left of a sequence; it has no state if there is nothing.

        Raises BacklineError when the store cannot tell.
        """
        state = sequence.state = await self._store.take(self._key(sequence))
        if state is not None and (
            sequence.waiting or not sequence.ended
        ):  # it is open, and nothing of it may ever run here
            self._store.put(self._key(sequence), state, self._seconds)

    def forget(self, sequence: LiveSequence) -> None:
        """Its state is of no use to anybody: it begins again, or has ended. What has begun since with its id keeps its own."""
        if self._tensors.has_states and (self._is_open(sequence) or sequence.id not in self._table.open):
            self._store.drop(self._key(sequence))

    def forget_if_over(self, sequence: LiveSequence) -> None:
        """Nothing more of a sequence comes, and nothing waits or runs."""
        if sequence.ended and not sequence.waiting and sequence.running is None:
            self.forget(sequence)

    def _is_open(self, sequence: LiveSequence) -> bool:
        return self._table.open.get(sequence.id) is sequence

    def _key(self, sequence: LiveSequence) -> StateKey:
        return StateKey(self._model, self._version, sequence.id)


def initial_state(batching: SequenceBatching, files: Mapping[str, np.ndarray], *, batched: bool) -> State:
    """The states of a sequence that begins; `files` are the contents of those that come from a file, by input."""
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


def _zeros(tensor: Tensor) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, tensor.shape, _blank(tensor.datatype, tensor.shape))


def _filled(control: SequenceControl, shape: Shape, value: object) -> Tensor:
    data = np.empty(shape, control.datatype.dtype)
    data.fill(value)
    return Tensor(control.name, control.datatype, shape, data)
