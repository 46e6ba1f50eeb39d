"""Proves that the first dimension of a model is a batch, by running items alone and together."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from backline.backends.backend import LoadedModel
from backline.engine.config.joining import Joining
from backline.engine.errors import BacklineError
from backline.engine.values.datatypes import DataType
from backline.engine.values.signature import Signature, TensorSpec
from backline.lifecycle.loading.trial_inputs import (
    FAMILIES,
    LARGE,
    TRIAL_SIZES,
    Arrays,
    Sizes,
    ValueFamily,
    find_trial,
    free_dimensions,
    make_inputs,
)
from backline.lifecycle.view.join import JoinRequests
from backline.lifecycle.view.stage import StagedModel

#: Seconds to search for sizes that the model accepts.
_SEARCH_BUDGET = 0.1
#: Seconds after which no further combination of items is run.
_BUDGET = 0.15
#: Models with a slow run (in seconds) are tried with only three items, those with a very slow one with two.
_SLOW_RUN = 0.004
_VERY_SLOW_RUN = 0.05
#: Tolerated difference, relative to the largest magnitude of the row: batched kernels sum in another order.
_TOLERANCE = 1e-3
_HALF_TOLERANCE = 2e-2
#: Tolerated difference for rows that are nearly zero, relative to the largest magnitude of the output.
_FLOOR = 1e-5
#: The largest size of variable dimensions when the proof is repeated with other sizes.
_MAX_OTHER_SIZE = 256


@dataclass(frozen=True, slots=True)
class BatchProbe:
    """The result of a proof; `reason` explains it to users in one sentence."""

    batched: bool
    reason: str


class _Refuted(Exception):
    """The first dimension is not a batch; the message says why."""


def probe_batching(model: LoadedModel) -> BatchProbe:
    """Whether requests can be concatenated along the first dimension, and outputs split along theirs.

    Runs items of different magnitudes alone, and together in several orders; each must get the same outputs.
    Takes milliseconds for small models, a few runs for slow ones.
    """
    try:
        _check_shapes(model)
        return BatchProbe(True, _Prober(model).prove())
    except _Refuted as refuted:
        return BatchProbe(False, str(refuted))
    except BacklineError as error:
        return BatchProbe(False, f"a run that had succeeded failed when it was repeated: {error.message}")


def _check_shapes(model: LoadedModel) -> None:
    if not model.signature.inputs:
        raise _Refuted("the model has no inputs")
    for spec in model.signature.inputs:
        if not spec.shape:
            raise _Refuted(f"input '{spec.name}' is a scalar, so it has no batch dimension")
        if spec.shape[0] != -1:
            raise _Refuted(f"the first dimension of input '{spec.name}' is always {spec.shape[0]}")


@dataclass(frozen=True, slots=True)
class _Item:
    """One item, and the model's outputs when the item is run alone."""

    inputs: Arrays
    alone: list[np.ndarray]


class _Prober:
    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._signature = model.signature
        self._outputs = model.signature.outputs
        self._names = [spec.name for spec in self._outputs]
        self._scales = [0.0] * len(self._names)
        self._started = perf_counter()
        self._compared = 0

    def prove(self) -> str:
        trial = find_trial(self._model, batched=True, deadline=self._started + _SEARCH_BUDGET)
        if trial is None:
            raise _Refuted("no input that was tried could be run, so nothing is known about batches")
        begin = perf_counter()
        self._run(make_inputs(self._signature, trial.sizes, 1, trial.family, 1))
        seconds = perf_counter() - begin
        wanted = [
            (trial.family, 1),
            (LARGE, 2),
            (trial.family, 3),
            *((other, 4) for other in FAMILIES if other is not trial.family),
        ]
        if seconds > _SLOW_RUN:
            wanted = wanted[: 2 if seconds > _VERY_SLOW_RUN else 3]
        self._prove_at(trial.sizes, wanted)
        if seconds < _VERY_SLOW_RUN and free_dimensions(self._signature, batched=True):
            self._prove_elsewhere(trial.sizes, wanted)
        return (
            "the first dimension is a batch: items gave the same outputs together as alone"
            f" ({self._compared} comparisons)"
        )

    def _prove_elsewhere(self, proved: Sizes, wanted: list[tuple[ValueFamily, int]]) -> None:
        """Repeats the proof with other sizes: at length 1, a time dimension can look like a batch."""
        for size in TRIAL_SIZES:
            if self._late():
                return
            if size > _MAX_OTHER_SIZE:
                continue
            sizes = {dimension: size if old > 1 or size == 1 else old for dimension, old in proved.items()}
            if sizes != proved and len(self._items(sizes, wanted[:2])) == 2:
                self._prove_at(sizes, wanted[:3])
                return

    def _prove_at(self, sizes: Sizes, wanted: list[tuple[ValueFamily, int]]) -> None:
        items = self._items(sizes, wanted)
        if len(items) < 2:
            items = self._items(sizes, [wanted[0], (wanted[0][0], 5)])
        if len(items) < 2:
            raise _Refuted("only one input that was tried could be run, so nothing is known about batches")
        if len(items) == 2:
            self._check_repeatable(items[0])
            self._check_together([items[1], items[0]])
            return
        # Small models are tried in every order; slow ones with at most three runs of each item.
        for item in items if len(items) > 3 else items[:1]:
            self._check_repeatable(item)
        self._check_together([items[1], items[0]])
        self._check_together(items)
        if len(items) == 3:
            return
        self._check_together(items[::-1])
        for item in items[1:]:
            if self._late():
                return
            self._check_together([items[0], item])
            self._check_together([item, items[1], items[0]])

    def _late(self) -> bool:
        return perf_counter() - self._started > _BUDGET

    def _items(self, sizes: Sizes, wanted: list[tuple[ValueFamily, int]]) -> list[_Item]:
        """Items of the `wanted` values, without those that the model rejects (as an index out of range)."""
        return [item for family, seed in wanted if (item := self._item(sizes, family, seed)) is not None]

    def _item(self, sizes: Sizes, family: ValueFamily, seed: int) -> _Item | None:
        inputs = make_inputs(self._signature, sizes, 1, family, seed)
        try:
            alone = self._run(inputs)
        except BacklineError:
            return None
        for index, (spec, array) in enumerate(zip(self._outputs, alone, strict=True)):
            if array.ndim == 0 or array.shape[0] != 1:
                raise _Refuted(
                    f"output '{spec.name}' has shape {list(array.shape)} for one item, so its first dimension"
                    " is not a batch"
                )
            self._scales[index] = max(self._scales[index], _magnitude(spec, array))
        return _Item(inputs, alone)

    def _run(self, inputs: Arrays) -> list[np.ndarray]:
        return self._model.run(inputs, self._names)

    def _check_repeatable(self, item: _Item) -> None:
        for spec, first, second in zip(self._outputs, item.alone, self._run(item.inputs), strict=True):
            if first.shape != second.shape or not _equal(spec, first, second, 0.0):
                raise _Refuted(
                    f"output '{spec.name}' changes when the same input is run again, so the model is random"
                    " or keeps a state"
                )

    def _check_together(self, items: list[_Item]) -> None:
        inputs = {name: np.concatenate([item.inputs[name] for item in items]) for name in items[0].inputs}
        try:
            together = self._run(inputs)
        except BacklineError as error:
            raise _Refuted(
                f"each of {len(items)} items can be run alone, but not all together: {error.message}"
            ) from None
        for index, (spec, array) in enumerate(zip(self._outputs, together, strict=True)):
            if array.ndim == 0 or array.shape[0] != len(items):
                raise _Refuted(
                    f"output '{spec.name}' has shape {list(array.shape)} for {len(items)} items, so its first"
                    " dimension is not a batch"
                )
            for row, item in enumerate(items):
                alone = item.alone[index]
                part = array[row : row + 1]
                if part.shape != alone.shape:
                    raise _Refuted(
                        f"output '{spec.name}' of an item has shape {list(alone.shape)} alone, but"
                        f" {list(part.shape)} together with others"
                    )
                self._compared += 1
                if not _equal(spec, alone, part, _FLOOR * min(self._scales[index], 1.0)):
                    raise _Refuted(
                        f"output '{spec.name}' of an item depends on the other items of a batch (as when the"
                        " first dimension is time, or statistics are computed over it)"
                    )


def _floats(spec: TensorSpec, array: np.ndarray) -> np.ndarray | None:
    """The array as floats to compare with a tolerance; None for datatypes that are compared exactly."""
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
    """Whether two arrays of one shape are equal within the tolerance of their datatype."""
    return _equal(spec, expected, actual, _FLOOR * min(_magnitude(spec, expected), 1.0))


def _equal(spec: TensorSpec, expected: np.ndarray, actual: np.ndarray, floor: float) -> bool:
    """Whether rows are equal within the larger of `floor` and the datatype's tolerance; NaN equals NaN."""
    wanted, got = _floats(spec, expected), _floats(spec, actual)
    if wanted is None or got is None:
        return bool(np.array_equal(expected, actual))
    half = expected.dtype.kind != "f" or expected.dtype.itemsize < 4
    tolerance = max((_HALF_TOLERANCE if half else _TOLERANCE) * _magnitude(spec, expected), floor)
    finite = np.isfinite(wanted)
    if not np.array_equal(wanted[~finite], got[~finite], equal_nan=True):
        return False
    return bool((np.abs(wanted[finite] - got[finite]) <= tolerance).all())


#: The number of requests that are joined in the proof.
_REQUESTS = 4


class _WithoutFilling(JoinRequests):
    """Runs a request alone without padding it to a bucket or filling it up to a batch size."""

    def _accept(self, inner: Signature, joining: Joining) -> None:
        super()._accept(inner, joining)
        assert self.joiner is not None, "super() made it"
        self.joiner = self.joiner.not_filled_up()


def probe_joining(seen: LoadedModel, model: LoadedModel, join: JoinRequests) -> BatchProbe:
    """Proves that `join` does not change results: runs requests of different lengths alone and together.

    `seen` is the model as requests see it, on the outer side of the stage `join`; `model` is the model on its
    inner side.
    """
    apart = StagedModel(model, _WithoutFilling(join.outer, join.path))
    trial = find_trial(apart, batched=True, deadline=perf_counter() + _SEARCH_BUDGET)
    if trial is None:
        return BatchProbe(False, "no input that was tried could be run, so nothing is known about batches")
    names = [spec.name for spec in seen.signature.outputs]
    varying = [place for place in free_dimensions(seen.signature, batched=True) if join.may_differ(*place)]
    requests: list[Arrays] = []
    alone: list[list[np.ndarray]] = []
    families = (trial.family, *(other for other in FAMILIES if other is not trial.family))
    for number, family in enumerate(families):
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
        return BatchProbe(
            False, "only one input that was tried could be run, so nothing is known about batches"
        )
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
