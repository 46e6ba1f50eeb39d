"""Proves that the first dimension of a model is a batch, by running items alone and together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from msgspec import Struct

from backline.backends.backend import LoadedModel
from backline.engine.config.joining import Joining
from backline.lifecycle.loading.trial_inputs import (
    FAMILIES,
    HUGE,
    LARGE,
    MAX_TRIAL_ELEMENTS,
    ONES,
    POSITIVE,
    ZEROS,
    Arrays,
    Sizes,
    free_dimensions,
    make_inputs,
    trial_shape,
)
from backline.lifecycle.loading.trial_runs import Trial, Tried, find_trial
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.stage import StagedModel
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import element_count

#: The tolerated difference between FP32 or FP64 outputs, relative to the largest magnitude in a row. Equal
#: results differ slightly because batched kernels sum in a different order.
_TOLERANCE = 1e-3
#: The tolerated difference between FP16 or BF16 outputs, relative to the largest magnitude in a row.
_HALF_TOLERANCE = 2e-2
#: The tolerated difference for rows that are nearly zero, relative to the largest magnitude in the output or,
#: if that is above 1, to 1.
_FLOOR = 1e-5
#: How many times an item is run again before a difference is attributed to its batch.
_RUNS_AGAIN = 4


class BatchProbe(Struct, frozen=True):
    """The result of a proof. `reason` explains the result to users in one sentence.

    `known` is False if no outputs could be compared; then requests are not batched, to be safe.
    """

    batched: bool
    reason: str
    known: bool = True


#: The advice to the user that ends each message about a proof that was impossible.
_ADVICE = "set model_warmup to inputs that the model accepts, or set max_batch_size"


class _Refuted(Exception):
    """Raised when the first dimension is proved not to be a batch; the message says why."""


class _Unknown(Exception):
    """Raised when no outputs could be compared; the message says why."""


def first_dimensions(signature: Signature) -> str:
    """Returns why the first dimensions of the inputs cannot be a batch; empty if they can."""
    if not signature.inputs:
        return "the model has no inputs"
    for spec in signature.inputs:
        if not spec.shape:
            return f"input '{spec.name}' is a scalar, so it has no batch dimension"
        if spec.shape[0] != -1:
            return f"the first dimension of input '{spec.name}' is always {spec.shape[0]}"
    return ""


def probe_batching(model: Tried, trial: Trial | None, samples: Iterable[Arrays] = ()) -> BatchProbe:
    """Tests whether requests can be concatenated, and outputs can be split, along the first dimension.

    Runs three items of different magnitudes alone and then together, in a batch that contains the first item
    twice; each item must get the same outputs both times. (Two items are enough if the model rejects others.)
    Then runs one item with other sizes of the variable dimensions. `trial` is the first item, or None if the
    model accepted no input. The other items are the user's `samples`, or generated if there are too few.

    The runs are the same on every machine: they depend on the model, and never on how long a run takes. If
    the model accepts the generated items, there are four runs on seven items in total, or with variable
    dimensions five runs on eight items.
    """
    reason = first_dimensions(model.signature)
    if reason:
        return BatchProbe(False, reason)
    if trial is None:
        return _nothing_known("no input that was tried could be run")
    try:
        return BatchProbe(True, _Prober(model).prove(trial, tuple(samples)))
    except _Refuted as refuted:
        return BatchProbe(False, str(refuted))
    except _Unknown as unknown:
        return _nothing_known(str(unknown))
    except BacklineError as error:
        return BatchProbe(False, f"a run that had succeeded failed when it was repeated: {error.message}")


def check_batching(model: Tried, trial: Trial, samples: Iterable[Arrays] = ()) -> BatchProbe:
    """Looks for evidence that a model cannot be batched, although its configuration says that it can.

    Runs the trial's item again, in a batch with a different item or, if the model rejects other items, with
    itself. This check usually takes only one run, and finds less than a proof would. It is enough, because
    the user's configuration is trusted.
    """
    try:
        _Prober(model).check(trial, tuple(samples))
    except _Refuted as refuted:
        return BatchProbe(False, str(refuted))
    except BacklineError as error:
        return BatchProbe(False, f"a run that had succeeded failed when it was repeated: {error.message}")
    return BatchProbe(True, "an item gave the same outputs in a batch as alone")


def _nothing_known(why: str) -> BatchProbe:
    return BatchProbe(
        False, f"{why}, so it is not known whether requests can be batched: {_ADVICE}", known=False
    )


class _Item(Struct, frozen=True):
    """One item, and the model's outputs when the item is run alone."""

    inputs: Arrays
    alone: list[np.ndarray]


class _Prober:
    def __init__(self, model: Tried) -> None:
        self._model = model
        self._signature = model.signature
        self._outputs = model.signature.outputs
        self._names = [spec.name for spec in self._outputs]
        self._scales = [0.0] * len(self._names)
        self._compared = 0

    def prove(self, trial: Trial, samples: tuple[Arrays, ...]) -> str:
        first = self._item(trial.inputs, trial.outputs)
        others: list[_Item] = []
        for inputs in self._other_inputs(trial, samples):
            try:
                alone = self._run(inputs)
            except BacklineError:  # such as an index out of range
                continue
            others.append(self._item(inputs, alone))
            if len(others) == 2:
                break
        if not others:
            raise _Unknown("only one input that was tried could be run")
        # In this batch, each item is next to a different item, and no item would keep its place if the batch
        # were reversed.
        self._check_together([others[-1], first, others[0], first])
        self._check_other_sizes(trial)
        return (
            "the first dimension is a batch: items gave the same outputs together as alone"
            f" ({self._compared} comparisons)"
        )

    def check(self, trial: Trial, samples: tuple[Arrays, ...]) -> None:
        first = self._item(trial.inputs, trial.outputs)
        # The model may reject the values of other items, but not the values of the trial's item, which is
        # tried last.
        for other in (*islice(self._other_inputs(trial, samples), 2), trial.inputs):
            try:
                together = self._run(_joined([other, first.inputs]))
            except BacklineError as error:
                if other is trial.inputs:
                    raise _Refuted(
                        f"an item can be run alone, but not twice in a batch: {error.message}"
                    ) from None
            else:
                self._compare([None, first], together)
                return

    def _other_inputs(self, trial: Trial, samples: tuple[Arrays, ...]) -> Iterator[Arrays]:
        """Yields items to compare with the trial's item, beginning with those that differ most from it. The
        model may reject some of these items.
        """
        given = [
            sample
            for sample in samples
            if all(sample[name].shape == array.shape for name, array in trial.inputs.items())
        ]
        made = (
            make_inputs(self._signature, trial.sizes, 1, family, seed)
            for seed, family in enumerate((HUGE, LARGE, trial.family, POSITIVE, ONES, ZEROS), start=2)
        )
        # The same values are tried at other positions, because a model may reject any other numbers or words.
        moved = {name: np.roll(array, 1) for name, array in trial.inputs.items()}
        tried = [trial.inputs]
        for inputs in (*given, *made, moved):
            if not any(_same(inputs, other) for other in tried):
                tried.append(inputs)
                yield inputs

    def _check_other_sizes(self, trial: Trial) -> None:
        """Runs one item with all variable dimensions doubled or, if that fails, only those above 1.

        Without this check, a model whose output has rows of a fixed length, such as [-1, 4], could seem to
        return one row per item, because an item of the trial happens to have that length.
        """
        all_doubled = {place: 2 * size for place, size in trial.sizes.items()}
        large_doubled = {place: 2 * size if size > 1 else size for place, size in trial.sizes.items()}
        for sizes in (all_doubled, large_doubled):
            if sizes == trial.sizes or not self._fit(sizes):
                continue
            try:
                alone = self._run(make_inputs(self._signature, sizes, 1, trial.family, 1))
            except BacklineError:
                continue
            self._check_one_row(alone)
            return

    def _fit(self, sizes: Sizes) -> bool:
        inputs = self._signature.inputs
        return all(element_count(trial_shape(spec, sizes, 1)) <= MAX_TRIAL_ELEMENTS for spec in inputs)

    def _item(self, inputs: Arrays, alone: list[np.ndarray]) -> _Item:
        self._check_one_row(alone)
        for index, (spec, array) in enumerate(zip(self._outputs, alone, strict=True)):
            self._scales[index] = max(self._scales[index], _magnitude(spec, array))
        return _Item(inputs, alone)

    def _check_one_row(self, alone: list[np.ndarray]) -> None:
        for spec, array in zip(self._outputs, alone, strict=True):
            if array.ndim == 0 or array.shape[0] != 1:
                raise _Refuted(
                    f"output '{spec.name}' has shape {list(array.shape)} for one item, so its first dimension"
                    " is not the batch dimension"
                )

    def _run(self, inputs: Arrays) -> list[np.ndarray]:
        return self._model.run(inputs, self._names)

    def _check_together(self, items: list[_Item]) -> None:
        try:
            together = self._run(_joined([item.inputs for item in items]))
        except BacklineError as error:
            raise _Refuted(
                f"each of {len({id(item) for item in items})} items can be run alone, but not all together:"
                f" {error.message}"
            ) from None
        self._compare(items, together)

    def _compare(self, items: Sequence[_Item | None], together: list[np.ndarray]) -> None:
        """Raises _Refuted unless each row of a batch's outputs matches the outputs of the same item when it
        was run alone.

        `items` are the items of the batch; rows whose item is None are not compared.
        """
        for index, (spec, array) in enumerate(zip(self._outputs, together, strict=True)):
            if array.ndim == 0 or array.shape[0] != len(items):
                raise _Refuted(
                    f"output '{spec.name}' has shape {list(array.shape)} for {len(items)} items, so its first"
                    " dimension is not the batch dimension"
                )
            for row, item in enumerate(items):
                if item is None:
                    continue
                alone = item.alone[index]
                part = array[row : row + 1]
                self._compared += 1
                if part.shape == alone.shape and self._equal(index, alone, part):
                    continue
                if self._changes(index, item):
                    raise _Refuted(
                        f"output '{spec.name}' changes when the same input is run again, so the model is"
                        " random or keeps a state"
                    )
                if part.shape != alone.shape:
                    raise _Refuted(
                        f"output '{spec.name}' of an item has shape {list(alone.shape)} alone, but"
                        f" {list(part.shape)} together with others"
                    )
                raise _Refuted(
                    f"output '{spec.name}' of an item depends on the other items of a batch (as when the"
                    " first dimension is time, or statistics are computed over it)"
                )

    def _changes(self, output: int, item: _Item) -> bool:
        """Returns whether an output of an item differs when the item is run again. Beside large inputs,
        random outputs may be equal once by chance.
        """
        alone = item.alone[output]
        runs = (self._run(item.inputs)[output] for _ in range(_RUNS_AGAIN))
        return any(again.shape != alone.shape or not self._equal(output, alone, again) for again in runs)

    def _equal(self, output: int, expected: np.ndarray, actual: np.ndarray) -> bool:
        floor = _FLOOR * min(self._scales[output], 1.0)
        return _equal(self._outputs[output], expected, actual, floor)


def _joined(items: Sequence[Arrays]) -> Arrays:
    return {name: np.concatenate([item[name] for item in items]) for name in items[0]}


def _same(inputs: Arrays, others: Arrays) -> bool:
    """Returns whether two items are equal, so that comparing them would prove nothing.

    Items without elements never count as equal.
    """
    arrays = inputs.values()
    return any(array.size for array in arrays) and all(
        np.array_equal(array, others[name]) for name, array in inputs.items()
    )


def _floats(spec: TensorSpec, array: np.ndarray) -> np.ndarray | None:
    """Converts an array to floats for a comparison with a tolerance. Returns None for datatypes that are
    compared exactly.
    """
    if array.dtype.kind == "f":
        return array.astype(np.float64) if array.dtype.itemsize < 8 else array
    if spec.datatype is DataType.BF16 and array.dtype == np.uint16:
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32).astype(np.float64)
    return None


def _magnitude(spec: TensorSpec, array: np.ndarray) -> float:
    values = _floats(spec, array)
    if values is None:
        return 0.0
    finite = values[np.isfinite(values)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def equal_rows(spec: TensorSpec, expected: np.ndarray, actual: np.ndarray) -> bool:
    """Returns whether two arrays of one shape are equal within the tolerance of their datatype."""
    return _equal(spec, expected, actual, _FLOOR * min(_magnitude(spec, expected), 1.0))


def _equal(spec: TensorSpec, expected: np.ndarray, actual: np.ndarray, floor: float) -> bool:
    """Compares rows, within the larger of `floor` and the datatype's tolerance; NaN equals NaN."""
    wanted, got = _floats(spec, expected), _floats(spec, actual)
    if wanted is None or got is None:
        return bool(np.array_equal(expected, actual))
    half = expected.dtype.kind != "f" or expected.dtype.itemsize < 4
    tolerance = max((_HALF_TOLERANCE if half else _TOLERANCE) * _magnitude(spec, expected), floor)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return False
    return bool((np.abs(wanted[finite] - got[finite]) <= tolerance).all())


#: The maximum number of requests that are joined in the proof.
_REQUESTS = 4


class _WithoutFilling(JoinRequests):
    """A stage that runs a request alone, without padding it to a bucket or filling it up to a batch size."""

    def _accept(self, inner: Signature, joining: Joining) -> None:
        super()._accept(inner, joining)
        assert self.joiner is not None, "super() made it"
        self.joiner = self.joiner.not_filled_up()


def probe_joining(
    seen: Tried, model: LoadedModel, join: JoinRequests, samples: Iterable[Arrays] = ()
) -> BatchProbe:
    """Proves that `join` does not change results: runs requests of different lengths alone and together.

    `seen` is the model on the outer side of the stage `join`, as requests see it; `model` is the model on the
    inner side.
    """
    apart = StagedModel(model, _WithoutFilling(join.outer, join.path))
    trial = find_trial(apart, batched=True, samples=samples)
    if trial is None:
        return _nothing_known("no input that was tried could be run")
    names = [spec.name for spec in seen.signature.outputs]
    varying = [
        (name, axis)
        for name, axis in free_dimensions(seen.signature, batched=True)
        if join.may_differ(name, axis)
    ]
    requests: list[Arrays] = [trial.inputs]
    alone: list[list[np.ndarray]] = [trial.outputs]
    for number, family in enumerate((other for other in FAMILIES if other is not trial.family), start=1):
        sizes: Sizes = {
            place: max(1, trial.sizes[place] - (number if place in varying else 0)) for place in trial.sizes
        }
        request = make_inputs(seen.signature, sizes, 1, family, number + 1)
        try:
            outputs = apart.run(request, names)
        except BacklineError:  # the model rejects this length or value
            continue
        requests.append(request)
        alone.append(outputs)
        if len(requests) == _REQUESTS:
            break
    if len(requests) < 2:
        return _nothing_known("only one input that was tried could be run")
    try:
        together = join.run_together(model.run, requests, names)
    except BacklineError as error:
        return BatchProbe(
            False, f"each of {len(requests)} requests can be run alone, but not all together: {error.message}"
        )
    for own, part in zip(alone, together, strict=True):
        for spec, expected, got in zip(seen.signature.outputs, own, part, strict=True):
            if expected.shape != got.shape:
                shapes = f"{list(expected.shape)} alone, but {list(got.shape)} together with others"
                return BatchProbe(False, f"output '{spec.name}' of a request has shape {shapes}")
            if not equal_rows(spec, expected, got):
                return BatchProbe(
                    False,
                    f"output '{spec.name}' of a request depends on the other requests in its batch, or on the"
                    " padding",
                )
    return BatchProbe(
        True,
        f"requests of different lengths gave the same outputs together as alone ({len(requests)} requests)",
    )
