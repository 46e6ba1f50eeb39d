"""Makes trial runs of a model: searches for inputs that the model accepts, and times each run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from time import perf_counter, process_time
from typing import Protocol, TypeAlias

import numpy as np
from msgspec import Struct

from backline.backends.runtime import NeverRuns
from backline.lifecycle.loading.trial_inputs import (
    FLOATS,
    LARGE,
    NORMAL,
    ONES,
    POSITIVE,
    SAMPLING_RATE,
    ZEROS,
    Arrays,
    Sizes,
    ValueFamily,
    free_dimensions,
    make_inputs,
    size_choices,
    trial_shape,
)
from backline.system.cores import seconds_without_core
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, Internal
from backline_client.values.signature import Signature
from backline_client.values.tensor import Tensor, element_count

# The search is limited by the number of runs and elements, never by time, so that replicas of a server find
# the same inputs however busy their machines are.
#: The maximum number of generated inputs that are tried in one round.
_MOST_TRIES = 100
#: The maximum number of elements of all inputs in a round, because runs with large inputs are slow. The
#: first input of a round is always tried.
_MOST_ELEMENTS = 1 << 20
#: After this many inputs with an empty output, the search settles for the first of these inputs.
_MOST_EMPTY = 6


#: The user's own items, from warm-up requests, with or without a batch dimension.
Samples: TypeAlias = Sequence[Mapping[str, Tensor]]


class Tried(Protocol):
    """The methods of a model that trial runs use."""

    @property
    def signature(self) -> Signature: ...

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]: ...


class RunTime(Struct, frozen=True):
    """The duration of one run in seconds, and the process's CPU time as a multiple of that duration.

    The time for which the thread waited for a core is left out: it says how busy the machine is, not how long
    the model takes.
    """

    seconds: float
    computing: float


class TrialRuns:
    """A wrapper around a model that stores the duration of each run, so that no run is repeated only to be
    timed.
    """

    def __init__(self, model: Tried) -> None:
        self.model = model
        self._times: dict[object, list[RunTime]] = {}
        #: The errors of failed runs.
        self._failures: list[Internal] = []

    @property
    def signature(self) -> Signature:
        """The model's signature."""
        return self.model.signature

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """Runs the model and stores the duration, except that of a failed run."""
        measured = time_run()
        try:
            arrays = self.model.run(inputs, outputs)
        except Internal as error:
            self._failures.append(error)
            raise
        self._times.setdefault(_shapes(inputs), []).append(measured())
        return arrays

    def times_of(self, inputs: Mapping[str, np.ndarray]) -> Sequence[RunTime]:
        """Returns the times of the runs whose inputs had the shapes of `inputs`, in order."""
        return self._times.get(_shapes(inputs), ())

    def check_failures(self) -> None:
        """Raises Internal if the model has said that no run can ever succeed.

        Any other failure proves nothing: the inputs may be sizes or other values that no trial guesses.
        """
        for error in self._failures:
            if isinstance(error, NeverRuns) and not self._times:
                raise Internal(error.message)


def time_run() -> Callable[[], RunTime]:
    """Starts timing what the current thread does. Returns a function that returns the time since then."""
    # The clock is read first here and last below: a wait outside of the measured time must not shorten it.
    begun, computed, without_core = perf_counter(), process_time(), seconds_without_core()

    def measured() -> RunTime:
        waited = seconds_without_core() - without_core
        on_core = max(perf_counter() - begun - waited, 1e-9)
        return RunTime(on_core, (process_time() - computed) / on_core)

    return measured


def _shapes(inputs: Mapping[str, np.ndarray]) -> object:
    return tuple(sorted((name, array.shape) for name, array in inputs.items()))


class Trial(Struct, frozen=True):
    """Inputs that the model accepted in a trial run, and the outputs of that run.

    `sizes` are the sizes of the variable dimensions. If the values were generated, they are of `family`, with
    seed 1.
    """

    sizes: Sizes
    family: ValueFamily
    inputs: Arrays
    outputs: list[np.ndarray]

    def unbatched(self, signature: Signature) -> Trial:
        """Returns the trial for a model without batches, whose first dimension is an ordinary dimension."""
        free = free_dimensions(signature, batched=False)
        sizes = {(name, axis): self.inputs[name].shape[axis] for name, axis in free}
        return Trial(sizes, self.family, self.inputs, self.outputs)


def fitting(signature: Signature, samples: Samples, *, batched: bool) -> list[Arrays]:
    """Returns the samples that fit a signature, as inputs of the model. With `batched`, each input is one
    item of a sample.
    """
    fitted: list[Arrays] = []
    for sample in samples:
        arrays: Arrays = {}
        for spec in signature.inputs:
            tensor = sample.get(spec.name)
            if tensor is None or tensor.datatype is not spec.datatype:
                break
            array = tensor.data.reshape(tensor.shape)
            if array.ndim == len(spec.shape) - 1:
                array = array[np.newaxis]
            if array.ndim != len(spec.shape):
                break
            arrays[spec.name] = array[:1] if batched else array
        else:
            fitted.append(arrays)
    return fitted


def find_trial(model: Tried, *, batched: bool, samples: Iterable[Arrays] = ()) -> Trial | None:
    """Returns the first inputs that the model accepts, preferably with outputs that are not empty.

    Returns None if the model accepts no inputs. With `batched`, the inputs are one item. The user's `samples`
    are tried first, then generated inputs.
    """
    names = [spec.name for spec in model.signature.outputs]
    fallback: Trial | None = None
    empty = 0
    for sizes, family, inputs in _candidates(model.signature, batched=batched, samples=samples):
        try:
            outputs = model.run(inputs, names)
        except BacklineError:
            continue
        trial = Trial(sizes, family, inputs, outputs)
        if all(array.size for array in outputs):
            return trial
        fallback = fallback or trial
        empty += 1
        if empty == _MOST_EMPTY:
            break
    return fallback


def _candidates(
    signature: Signature, *, batched: bool, samples: Iterable[Arrays]
) -> Iterator[tuple[Sizes, ValueFamily, Arrays]]:
    free = free_dimensions(signature, batched=batched)
    for sample in samples:
        yield {(name, axis): sample[name].shape[axis] for name, axis in free}, NORMAL, sample
    rows = 1 if batched else None
    for families in _rounds(signature, free):
        tries = elements = 0
        for sizes, family in product(size_choices(signature, batched=batched), families):
            size = sum(element_count(trial_shape(spec, sizes, rows)) for spec in signature.inputs)
            if tries and elements + size > _MOST_ELEMENTS:
                continue
            if tries == _MOST_TRIES:
                break
            tries += 1
            elements += size
            yield sizes, family, make_inputs(signature, sizes, rows, family, 1)


def _rounds(signature: Signature, free: Sequence[object]) -> Iterator[tuple[ValueFamily, ...]]:
    """Yields, for each round, the families of values to try, because a model may accept only certain numbers
    or strings.

    If all inputs are floats or booleans, other values are tried only if no dimension is variable (`free` is
    empty): otherwise the first round already tries many sizes.
    """
    others = {*FLOATS, DataType.BOOL}
    whole_numbers = [spec for spec in signature.inputs if spec.datatype not in others]
    yield (NORMAL, SAMPLING_RATE) if any(not spec.shape for spec in whole_numbers) else (NORMAL,)
    if whole_numbers:
        yield ONES, ZEROS, LARGE
    elif not free:
        yield ONES, ZEROS, POSITIVE
