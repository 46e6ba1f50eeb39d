"""Generates inputs for trial runs, which test whether a model can be batched, and measure its run time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
from msgspec import Struct

from backline_client.values.datatypes import DataType
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import element_count

Arrays = dict[str, np.ndarray]
#: The size of each variable dimension, by input name and axis.
Sizes = dict[tuple[str, int], int]

#: Sizes tried for variable dimensions, in this order. The size 1 comes late, because a proof with this size
#: cannot detect along which axis a model computes.
TRIAL_SIZES = (4, 16, 64, 256, 512, 1024, 2, 1, 100, 4096, 16000, 48000)
#: The maximum number of elements of a trial input. With several guessed sizes, the product can be huge.
MAX_TRIAL_ELEMENTS = 1 << 20
#: The maximum number of elements of all trial inputs together, for a model without variable dimensions.
MAX_FIXED_ELEMENTS = 1 << 26
#: In a model with more variable dimensions than this, all of them get the same size.
_MAX_FREE_DIMENSIONS = 4


class ValueFamily(Struct, frozen=True):
    """A family of values to try: floats spread over `offset` ± `scale`, integers from `lowest` to `top`, and
    strings.
    """

    scale: float
    offset: float
    top: int
    lowest: int
    words: tuple[bytes, ...]


NORMAL = ValueFamily(1.7, 0.0, 1, 0, (b"a", b"bc", b"def", b"x y"))
LARGE = ValueFamily(60.0, 5.0, 9, 0, (b"7", b"42", b"0", b"13"))
ZEROS = ValueFamily(0.0, 0.0, 0, 0, (b"",))
ONES = ValueFamily(0.0, 1.0, 1, 1, (b"1",))
POSITIVE = ValueFamily(0.5, 0.5, 99, 0, (b"one", b"two", b"three"))
HUGE = ValueFamily(1e4, 0.0, 255, 0, (b"a longer text, with several words", b"z"))
#: For audio models with an input for the sampling rate in Hz. Many of them accept only 16000.
SAMPLING_RATE = ValueFamily(1.0, 0.0, 16000, 16000, (b"a",))
FAMILIES = (NORMAL, LARGE, ZEROS, ONES, POSITIVE, HUGE)


def make_inputs(
    signature: Signature, sizes: Sizes, rows: int | None, family: ValueFamily, seed: int
) -> Arrays:
    """Generates inputs for a model; `rows` is the batch size, None for a model without a batch dimension."""
    arrays: Arrays = {}
    for index, spec in enumerate(signature.inputs):
        shape = trial_shape(spec, sizes, rows)
        if spec.labels:
            values = _pick(spec.listed_values(), element_count(shape), seed * 31 + index)
        else:
            values = make_values(spec.datatype, element_count(shape), family, seed * 31 + index)
        arrays[spec.name] = values.reshape(shape)
    return arrays


def trial_shape(spec: TensorSpec, sizes: Sizes, rows: int | None) -> tuple[int, ...]:
    """Returns the shape of an input with these `sizes` and, unless `rows` is None, `rows` items."""
    shape = tuple(sizes.get((spec.name, axis), dim) for axis, dim in enumerate(spec.shape))
    return shape if rows is None else (rows, *shape[1:])


def free_dimensions(signature: Signature, *, batched: bool) -> list[tuple[str, int]]:
    """Returns the variable dimensions of the inputs, except a batch dimension."""
    first = 1 if batched else 0
    return [
        (spec.name, axis)
        for spec in signature.inputs
        for axis, dim in enumerate(spec.shape)
        if dim == -1 and axis >= first
    ]


def size_choices(signature: Signature, *, batched: bool) -> Iterator[Sizes]:
    """Yields sizes to try for the variable dimensions, most likely first.

    Each of TRIAL_SIZES is tried in turn. With a batch dimension, all dimensions get the size first, then only
    some of them, and the others get 1. Without a batch dimension, choices in which the first dimension is 1
    come first.
    """
    free = free_dimensions(signature, batched=batched)
    if not free:
        # Sizes that the model specifies may give larger inputs than guessed sizes, but they are limited too,
        # because a file may claim any size.
        rows = 1 if batched else None
        if sum(element_count(trial_shape(s, {}, rows)) for s in signature.inputs) <= MAX_FIXED_ELEMENTS:
            yield {}
        return
    masks: list[tuple[bool, ...]] = [(True,) * len(free)]
    if len(free) <= _MAX_FREE_DIMENSIONS:
        masks = list(product((True, False), repeat=len(free)))
    if not batched:
        masks.sort(
            key=lambda mask: (
                sum(big for (_, axis), big in zip(free, mask, strict=True) if axis == 0),
                mask.count(False),
            )
        )
    seen: set[tuple[int, ...]] = set()
    for size in TRIAL_SIZES:
        for mask in masks:
            choice = tuple(size if big else 1 for big in mask)
            sizes = dict(zip(free, choice, strict=True))
            rows = 1 if batched else None
            if choice not in seen and all(
                element_count(trial_shape(s, sizes, rows)) <= MAX_TRIAL_ELEMENTS for s in signature.inputs
            ):
                seen.add(choice)
                yield sizes


FLOATS = frozenset({DataType.FP16, DataType.BF16, DataType.FP32, DataType.FP64})


def make_values(datatype: DataType, count: int, family: ValueFamily, seed: int) -> np.ndarray:
    """Returns `count` values of a family, as a flat array; the same seed gives the same values."""
    if datatype is DataType.BYTES:
        words = np.empty(len(family.words), np.object_)
        words[:] = family.words
        return _pick(words, count, seed)
    if datatype in FLOATS:
        # numpy.random is not used, because its import would slow down the start.
        spread = _scramble(count, seed) / np.float32(2**31) - np.float32(1)
        values = spread * np.float32(family.scale) + np.float32(family.offset)
        if datatype is DataType.BF16:
            return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        with np.errstate(over="ignore"):
            return values.astype(datatype.dtype)
    if datatype is DataType.BOOL:
        return (
            _scramble(count, seed) % np.uint32(family.top - family.lowest + 1) + np.uint32(family.lowest)
        ).astype(np.bool_)
    top = min(family.top, np.iinfo(datatype.dtype).max)
    lowest = min(family.lowest, top)
    return (_scramble(count, seed) % np.uint32(top - lowest + 1) + np.uint32(lowest)).astype(datatype.dtype)


def _pick(values: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns `count` of the values; the same seed gives the same choice."""
    return values[_scramble(count, seed) % np.uint32(len(values))]


def _scramble(count: int, seed: int) -> np.ndarray:
    """Returns `count` well-mixed 32-bit numbers; the same seed gives the same numbers."""
    mixed = np.arange(1, count + 1, dtype=np.uint32) * np.uint32(2654435761)
    mixed += np.uint32(seed * 2246822519 & 0xFFFFFFFF)
    for _ in range(2):
        mixed ^= mixed >> np.uint32(16)
        mixed *= np.uint32(0x45D9F3B)
    return mixed ^ (mixed >> np.uint32(16))
