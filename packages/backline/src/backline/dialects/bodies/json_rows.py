"""JSON by rows: a list with an object for each row, such as [{"age": 31, "city": "Oslo"}]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from backline.dialects.bodies.columns import Inputs, Labels, row_count
from backline.dialects.bodies.values import tensor_of, value_of
from backline.dialects.json_scan import check_keys, count
from backline.dialects.off_loop import LARGE, PIECE, stop_if_abandoned
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer, Tensor

#: The maximum number of objects in a body: each becomes several Python objects.
MAX_ROWS: Final = 262_144
_encode = msgspec.json.encode


def is_rows(text: Buffer) -> bool:
    """Returns whether JSON is a list."""
    return bytes(text[:64]).lstrip()[:1] == b"["


def read(inputs: Inputs, text: Buffer) -> dict[str, Tensor]:
    """Returns the inputs in a list of rows. NaN and the infinities must be in quotes.

    Raises msgspec.DecodeError for text that is not JSON, InvalidArgument for rows that do not fit the inputs,
    and PayloadTooLarge for too many rows.
    """
    if len(text) > LARGE and (objects := count(text, ord("{"))) > MAX_ROWS:
        raise PayloadTooLarge(
            f"the JSON has {objects} rows, more than the {MAX_ROWS} allowed here; send CSV or Arrow"
        )
    columns: dict[str, list[Any]] = {name: [] for name in inputs.specs}
    rows = msgspec.json.decode(text, type=list[msgspec.Raw])
    inputs.check_rows(len(rows))
    given: frozenset[str] = frozenset()
    for number, raw in enumerate(rows, 1):  # the event loop can run between two rows
        if len(raw) > LARGE:
            check_keys(raw)
        row = msgspec.json.decode(raw)
        if not isinstance(row, dict):
            example = ", ".join(f'"{name}": ...' for name in list(inputs.specs)[:3])
            raise InvalidArgument(
                f"the request JSON is not an object, and element {number} of its list is not a row: send the"
                f" inputs by name, such as {{{example}}}, or a list of such objects"
            )
        if row.keys() != given:
            inputs.check_names(f"row {number}", row)
            if number > 1:
                absent = next(iter(row.keys() ^ given))
                raise InvalidArgument(
                    f"rows 1 and {number} differ in '{absent[:64]}': send it in every row, or in none"
                )
            given = frozenset(row)
        for name, value in row.items():
            columns[name].append(value)
        if not number % PIECE:
            stop_if_abandoned()
    return {name: tensor_of(inputs.specs[name], columns[name]) for name in inputs.specs if name in given}


def write(outputs: Sequence[Tensor], labels: Labels, json_outputs: frozenset[str]) -> bytes:
    """Returns outputs as rows. The values of an output with labels become an object.

    Elements of the `json_outputs` are JSON texts. Large outputs are encoded in pieces, between which other
    threads can run. Raises NotAcceptable if the outputs differ in their number of rows.
    """
    rows = row_count(outputs, "rows")
    widest = max([tensor.data.size // max(rows, 1) for tensor in outputs], default=1)
    step = max(PIECE // max(widest, 1), 1)
    pieces = []
    for start in range(0, rows, step):
        columns = [_values(tensor, start, start + step, labels, json_outputs) for tensor in outputs]
        names = [tensor.name for tensor in outputs]
        piece = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
        pieces.append(_encode(piece)[1:-1])
    return b"[%b]" % b",".join(pieces)


def _values(tensor: Tensor, start: int, end: int, labels: Labels, json_outputs: frozenset[str]) -> list[Any]:
    """Returns the values of the rows from `start` to `end`."""
    data = tensor.data.reshape(tensor.shape)[start:end]
    part = Tensor(tensor.name, tensor.datatype, data.shape, data)
    values = value_of(part, json=tensor.name in json_outputs)
    if isinstance(values, msgspec.Raw):  # a single row that is large
        values = msgspec.json.decode(values, type=list[msgspec.Raw])
    named = labels.get(tensor.name, ())
    if named and data.shape[1:] == (len(named),):
        return [dict(zip(named, value, strict=True)) for value in values]
    return list(values)
