"""Joins requests of different shapes for one run of a model, and splits its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, repeat
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from msgspec.structs import replace

from backline.engine.config.joining import BatchInput, Cut, Joining, Padding
from backline.engine.config.reshape import Reshapes, reshape_arrays
from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal, InvalidArgument
from backline_client.values.signature import Signature, TensorSpec
from backline_client.values.tensor import Shape, element_count

Arrays: TypeAlias = Mapping[str, np.ndarray]
#: A function that computes a hidden input from the requests, their numbers of rows, and the joined inputs.
Describe: TypeAlias = Callable[[Sequence[Arrays], Sequence[int], Arrays], np.ndarray]


def lengths(
    name: str, axis: int, dtype: np.dtype, requests: Sequence[Arrays], rows: Sequence[int], _: Arrays
) -> np.ndarray:
    """Returns the hidden input that holds, for each item of an input, the length of the item along an
    axis.
    """
    return np.repeat(np.array([request[name].shape[axis] for request in requests], dtype), rows)


def mask(
    name: str, axis: int, dtype: np.dtype, requests: Sequence[Arrays], rows: Sequence[int], inputs: Arrays
) -> np.ndarray:
    """Returns the hidden input that marks which elements of the joined input belong to an item, rather than
    to its padding.
    """
    real = lengths(name, axis, np.dtype(np.int64), requests, rows, inputs)
    return (np.arange(inputs[name].shape[axis]) < real[:, np.newaxis]).astype(dtype)


def _counts(sources: Sequence[np.ndarray]) -> list[int]:
    return [source.size for source in sources]


def _item_shape(sources: Sequence[np.ndarray]) -> np.ndarray:
    """Returns the shape of each item, with one row per item of the batch rather than per request."""
    return np.concatenate([np.tile(source.shape[1:], (len(source), 1)) for source in sources])


#: Triton's kinds of batch inputs (backend_input_collector.cc). Each is a function of the arrays that the
#: requests have for the source input.
BATCH_INPUTS: Mapping[str, Callable[[Sequence[np.ndarray]], object]] = {
    "BATCH_ELEMENT_COUNT": _counts,
    "BATCH_ACCUMULATED_ELEMENT_COUNT": lambda sources: np.cumsum(_counts(sources)),
    "BATCH_ACCUMULATED_ELEMENT_COUNT_WITH_ZERO": lambda sources: [0, *accumulate(_counts(sources))],
    # The model reads only the shape of this input, which has as many elements as the largest source array.
    "BATCH_MAX_ELEMENT_COUNT_AS_SHAPE": lambda sources: np.zeros(max(_counts(sources))),
    "BATCH_ITEM_SHAPE": _item_shape,
    "BATCH_ITEM_SHAPE_FLATTEN": lambda sources: _item_shape(sources).reshape(-1),
}


def _batch_input(
    batch_input: BatchInput, dtype: np.dtype, requests: Sequence[Arrays], *_: object
) -> np.ndarray:
    sources = [request[batch_input.source] for request in requests]
    return np.asarray(BATCH_INPUTS[batch_input.kind](sources), dtype)


#: A function that combines the arrays that all requests have for one input.
Column: TypeAlias = Callable[[Sequence[np.ndarray]], np.ndarray]


class Joiner:
    """Joins requests and splits outputs by the rules of `joining`. Thread-safe, because it never changes.

    `signature` is the model's signature, including hidden inputs, with the batch dimension first.
    `scattered` has the shapes of scattered outputs as clients see them. `reshapes` has the configured
    reshapes by input; batch inputs describe the shapes that the model sees. A model that is not `batched`
    gets one request at a time, and its outputs are not split by rows.

    Raises InvalidArgument, prefixed with `where`, if the model does not fit the rules.
    """

    def __init__(
        self,
        where: str,
        joining: Joining,
        signature: Signature,
        scattered: Mapping[str, Shape],
        *,
        batched: bool,
        reshapes: Reshapes = MappingProxyType({}),
    ) -> None:
        self._made_of = (where, signature, scattered, reshapes)
        specs = {spec.name: spec for spec in signature.inputs}
        _check_names(where, joining, signature)
        self.joining = replace(joining, pad_all=False, padding=_padding(where, joining, signature))
        self._columns: dict[str, Column] = dict.fromkeys(joining.ragged, _end_to_end)
        #: The hidden inputs, each with the input that it describes and the function that computes it.
        self._made: list[tuple[str, str, Describe]] = []
        for name, padding in self.joining.padding.items():
            self._columns[name] = partial(_pad, padding, _fill_value(where, specs[name], padding.value))
            if padding.lengths:
                dtype = _described_dtype(where, specs[padding.lengths], 1)
                self._made.append((padding.lengths, name, partial(lengths, name, padding.axes[0], dtype)))
            if padding.mask:
                dtype = _described_dtype(where, specs[padding.mask], 2)
                self._made.append((padding.mask, name, partial(mask, name, padding.axes[0], dtype)))
        for batch_input in joining.batch_inputs:
            rank = 2 if batch_input.kind == "BATCH_ITEM_SHAPE" else 1
            for target in batch_input.targets:
                dtype = _described_dtype(where, specs[target], rank, batch_input.datatype)
                make: Describe = partial(_batch_input, batch_input, dtype)
                if batch_input.source in reshapes:
                    make = partial(_reshaped, make, reshapes)
                self._made.append((target, batch_input.source, make))
        self._batched = batched
        self._scattered = {name: (source, scattered[name]) for name, source in joining.scattered.items()}
        self._cuts = {name: (cut, self.joining.padding[cut.to].axes[0]) for name, cut in joining.cuts.items()}

    def not_filled_up(self) -> Joiner:
        """Returns a joiner that does not fill up batches, and pads a single request only if the model
        requires a fixed length.
        """
        where, signature, scattered, reshapes = self._made_of
        padding = {
            name: replace(padding, buckets=padding.buckets if padding.most else ())
            for name, padding in self.joining.padding.items()
        }
        joining = replace(self.joining, allowed_batch_sizes=(), padding=padding)
        return Joiner(where, joining, signature, scattered, batched=self._batched, reshapes=reshapes)

    def join(self, requests: Sequence[Arrays], rows: Sequence[int]) -> dict[str, np.ndarray]:
        """Joins requests into the inputs of the model. `rows` has the number of rows of each request. The
        requests must be ones that JoiningCheck allows in one batch.
        """
        requests, rows = self._filled_up(requests, rows)
        inputs = {
            name: self._columns.get(name, _one_after_the_other)([request[name] for request in requests])
            for name in requests[0]
        }
        for name, source, make in self._made:
            if source in inputs:  # an optional input may be missing
                inputs[name] = make(requests, rows, inputs)
        return inputs

    def _filled_up(
        self, requests: Sequence[Arrays], rows: Sequence[int]
    ) -> tuple[Sequence[Arrays], Sequence[int]]:
        """Appends copies of the first row until the batch has an allowed size. The outputs for these copies
        are discarded.
        """
        items = sum(rows)
        missing = self.joining.batch_size(items) - items
        if not missing:
            return requests, rows
        row = {name: array[:1] for name, array in requests[0].items()}
        return [*requests, *[row] * missing], [*rows, *[1] * missing]

    def run_size(self, rows: Sequence[int]) -> int:
        """Returns the number of rows in a run of these requests, including the rows that only fill up the
        batch.
        """
        return self.joining.batch_size(sum(rows))

    def split(
        self,
        requests: Sequence[Arrays],
        rows: Sequence[int],
        names: Sequence[str],
        arrays: Sequence[np.ndarray],
    ) -> list[list[np.ndarray]]:
        """Splits the outputs `arrays` of a run, whose names are `names`, into the outputs of each request.
        Raises Internal if an output does not fit the requests.
        """
        outputs: list[list[np.ndarray]] = [[] for _ in requests]
        for name, array in zip(names, arrays, strict=True):
            scattered = self._scattered.get(name)
            parts = (
                self._in_rows(name, array, rows)
                if scattered is None
                else self._in_shapes(name, array, requests, rows, *scattered)
            )
            cut = self._cuts.get(name)
            if cut is not None:
                parts = [_cut(*cut, part, request) for part, request in zip(parts, requests, strict=True)]
            for own, part in zip(outputs, parts, strict=True):
                own.append(part)
        return outputs

    def _in_rows(self, name: str, array: np.ndarray, rows: Sequence[int]) -> list[np.ndarray]:
        if not self._batched:
            return [array]
        expected = self.run_size(rows)
        if array.ndim == 0 or len(array) != expected:
            raise Internal(
                f"output '{name}' has shape {list(array.shape)} for a batch of {expected}; its first"
                f" dimension must be {expected}, one row for each item"
            )
        ends = list(accumulate(rows))
        return [array[end - count : end] for end, count in zip(ends, rows, strict=True)]

    def _in_shapes(
        self,
        name: str,
        array: np.ndarray,
        requests: Sequence[Arrays],
        rows: Sequence[int],
        source: str,
        dims: Shape,
    ) -> list[np.ndarray]:
        """Splits an output as Triton's BATCH_SCATTER_WITH_INPUT_SHAPE does: each varying dimension has the
        size of the dimension at the same index of the input `source`.

        If the requests do not have that input, the output must have one element for each item, and varying
        dimensions have the size 1.
        """
        if source not in requests[0]:
            shape = tuple(abs(dim) for dim in dims[1:])
            return [
                np.repeat(part, element_count(shape)).reshape(-1, *shape)
                for part in self._in_rows(name, array, rows)
            ]
        shapes = [
            tuple(
                own if dim < 0 else dim
                for dim, own in zip(dims, chain(request[source].shape, repeat(-1)), strict=False)
            )
            for request in requests
        ]
        ends = list(accumulate(map(element_count, shapes)))
        flat = array.reshape(-1)
        surplus = self.run_size(rows) > sum(rows)  # outputs of rows that only fill up the batch follow
        if flat.size < ends[-1] or (flat.size > ends[-1] and not surplus):
            raise Internal(
                f"output '{name}' has {flat.size} elements,"
                f" but the shapes of input '{source}' require {ends[-1]}"
            )
        return [
            flat[end - element_count(shape) : end].reshape(shape)
            for end, shape in zip(ends, shapes, strict=True)
        ]


# combining the arrays of one input


def _one_after_the_other(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _end_to_end(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return _one_after_the_other([array.reshape(-1) for array in arrays])


def _reshaped(
    make: Describe, reshapes: Reshapes, requests: Sequence[Arrays], rows: Sequence[int], inputs: Arrays
) -> np.ndarray:
    """Computes a batch input from the shapes that the model sees, rather than from the shapes that clients
    send.
    """
    return make([reshape_arrays(request, reshapes) for request in requests], rows, inputs)


def _pad(padding: Padding, value: object, arrays: Sequence[np.ndarray]) -> np.ndarray:
    shape = list(arrays[0].shape)
    for axis in padding.axes:
        shape[axis] = padding.length(max(array.shape[axis] for array in arrays))
    if all(list(array.shape[1:]) == shape[1:] for array in arrays):
        return _one_after_the_other(arrays)
    padded = np.full((sum(map(len, arrays)), *shape[1:]), value, arrays[0].dtype)
    end = 0
    for array in arrays:
        start, end = end, end + len(array)
        padded[(slice(start, end), *map(slice, array.shape[1:]))] = array
    return padded


# splitting outputs


def _cut(cut: Cut, axis: int, part: np.ndarray, request: Arrays) -> np.ndarray:
    if cut.to not in request:
        return part
    return part[(*[slice(None)] * cut.axis, slice(cut.length(request[cut.to].shape[axis])))]


# checking the model


def _check_names(where: str, joining: Joining, signature: Signature) -> None:
    inputs = {spec.name for spec in signature.inputs}
    outputs = {spec.name for spec in signature.outputs}
    for name in (*joining.ragged, *joining.padding, *joining.hidden_inputs, *joining.scattered.values()):
        if name not in inputs:
            raise InvalidArgument(
                f"{where} names the input '{name}', which the model does not have; it has {_list(inputs)}"
            )
    for name in (*joining.scattered, *joining.cuts):
        if name not in outputs:
            raise InvalidArgument(
                f"{where} names the output '{name}', which the model does not have; it has {_list(outputs)}"
            )


def _padding(where: str, joining: Joining, signature: Signature) -> dict[str, Padding]:
    """Returns the padding of each padded input by name, with all axes set."""
    given: dict[str, Padding] = {}
    hidden = joining.hidden_inputs
    for spec in signature.inputs:
        padding = joining.padding.get(spec.name)
        if padding is None and (not joining.pad_all or spec.name in joining.ragged or spec.name in hidden):
            continue
        varying = tuple(axis for axis, dim in enumerate(spec.shape) if dim < 0 and axis)
        axes = padding.axes if padding is not None and padding.axes else varying
        if padding is not None and (padding := _to_fixed_length(padding, spec.shape)) is None:
            raise InvalidArgument(
                f"{where} pads input '{spec.name}' along {list(axes)},"
                f" but in its shape {list(spec.shape)} {_vary(varying)}"
            )
        if padding is not None and (padding.lengths or padding.mask) and len(axes) != 1:
            raise InvalidArgument(
                f"{where} asks for lengths or a mask of input '{spec.name}',"
                f" which is padded along {list(axes)}: name one axis"
            )
        if axes:
            given[spec.name] = replace(padding or Padding(), axes=axes)
    for name, cut in joining.cuts.items():
        if cut.to not in given or len(given[cut.to].axes) != 1:
            raise InvalidArgument(
                f"{where} cuts output '{name}' to the length of '{cut.to}',"
                " which is not an input padded along one axis"
            )
        shape = next(spec.shape for spec in signature.outputs if spec.name == name)
        if shape and not 0 < cut.axis < len(shape):
            raise InvalidArgument(
                f"{where} cuts output '{name}' along axis {cut.axis}; expected an axis of its shape"
                f" {list(shape)} other than 0, the batch dimension"
            )
    return given


def _to_fixed_length(padding: Padding, shape: Shape) -> Padding | None:
    """Returns the padding for an input of this shape, or None if the input cannot be padded. If the model
    requires a fixed length, the padding has that length.
    """
    varying = {axis for axis, dim in enumerate(shape) if dim < 0 and axis}
    if set(padding.axes or varying) <= varying:
        return padding if varying else None
    if (
        len(padding.axes) == 1
        and 0 < padding.axes[0] < len(shape)
        and padding.buckets in ((), (shape[padding.axes[0]],))
    ):
        length = shape[padding.axes[0]]
        return replace(padding, buckets=(length,), most=length)
    return None


def _vary(axes: Sequence[int]) -> str:
    if not axes:
        return "only the batch dimension varies"
    names = ", ".join(map(str, axes))
    varying = f"dimensions {names} vary" if len(axes) > 1 else f"dimension {names} varies"
    return f"only {varying} besides the batch dimension"


def _described_dtype(where: str, spec: TensorSpec, rank: int, datatype: DataType | None = None) -> np.dtype:
    """Returns the dtype of a hidden input with this many dimensions. Raises InvalidArgument if the model
    declares another rank, another datatype, BYTES or BF16.
    """
    if datatype is not None and spec.datatype is not datatype:
        raise InvalidArgument(
            f"{where} creates input '{spec.name}' as {datatype.config_name},"
            f" but the model declares {spec.datatype.config_name}"
        )
    if spec.datatype in (DataType.BYTES, DataType.BF16) or len(spec.shape) != rank:
        raise InvalidArgument(
            f"{where} creates input '{spec.name}' with {rank} dimension{'s' if rank > 1 else ''} and a"
            " numeric datatype other than TYPE_BF16, but the model declares"
            f" {spec.datatype.config_name} {list(spec.shape)}"
        )
    return spec.datatype.dtype


def _fill_value(where: str, spec: TensorSpec, text: str) -> object:
    """Returns the value with which an input is padded. Raises InvalidArgument if `text` is not a value of the
    input's datatype.
    """
    if spec.datatype is DataType.BYTES:
        return text.encode()
    try:
        if spec.datatype is DataType.BOOL:
            return {"": False, "false": False, "true": True}[text]
        if spec.datatype is DataType.BF16:
            return int(np.array(float(text or 0), np.float32).view(np.uint32)) >> 16
        value = float(text or 0) if spec.datatype.dtype.kind == "f" else int(text or 0)
        return np.array(value, spec.datatype.dtype)[()]
    except (ValueError, OverflowError, KeyError):
        raise InvalidArgument(
            f"{where} pads input '{spec.name}' with '{text}', which is not of type {spec.datatype.name}"
        ) from None


def _list(names: set[str]) -> str:
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"
