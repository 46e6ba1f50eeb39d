"""CSV (RFC 4180) in UTF-8: a line with the names of the columns, then a line for each row.

An empty field is a missing value. Numbers are written as in JSON, and true and false in any case.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from io import BytesIO, StringIO, TextIOWrapper
from itertools import islice
from typing import Any, Final

import numpy as np

from backline.dialects.bodies.columns import Inputs, Labels, row_count, split_columns
from backline.dialects.bodies.values import tensor_of, widened
from backline.dialects.input_plan import check_bytes_elements
from backline.dialects.off_loop import PIECE, stop_if_abandoned
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Buffer, Tensor

#: The maximum length of a line in characters. The interpreter's lock is held while a line is read.
MAX_LINE: Final = 1 << 20
_WORDS: Final = {"true": True, "false": False}
_FLOATS: Final = {"": None, "nan": None, "inf": "Infinity", "infinity": "Infinity"} | {
    "-inf": "-Infinity",
    "-infinity": "-Infinity",
}


def read(inputs: Inputs, body: Buffer) -> dict[str, Tensor]:
    """Returns the inputs in a CSV text. The rows become arrays in pieces, so that the text and the arrays are
    all that is in memory.
    """
    try:
        return _read(inputs, csv.reader(_lines(body), strict=True))
    except UnicodeDecodeError as error:
        raise InvalidArgument(f"the CSV is not UTF-8 (byte {error.start} of a piece): send UTF-8") from None
    except csv.Error as error:
        raise InvalidArgument(f"the CSV is malformed: {error}") from None


def _lines(body: Buffer) -> Iterator[str]:
    text = TextIOWrapper(BytesIO(body), "utf-8-sig", newline="")
    while line := text.readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise InvalidArgument(
                f"the CSV has a line of more than {MAX_LINE} characters: send Arrow or JSON"
            )
        yield line


def _read(inputs: Inputs, lines: Any) -> dict[str, Tensor]:
    header: list[str] = next(lines, [])
    if len(set(header)) < len(header):
        raise InvalidArgument(f"the CSV has column '{_repeated(header)}' more than once")
    inputs.check_names("the CSV's first line, which names the columns,", header)
    specs = [inputs.specs[name] for name in header]
    for spec in specs:
        if len(spec.shape) != 1:
            raise InvalidArgument(
                f"input '{spec.name}' has the shape {list(spec.shape)}, but a field of CSV holds one value:"
                " send JSON or Arrow"
            )
    texts = sum(spec.datatype is DataType.BYTES for spec in specs)
    parts: list[list[np.ndarray]] = [[] for _ in specs]
    rows = 0
    while piece := list(islice(lines, max(PIECE // len(specs), 1))):
        stop_if_abandoned()
        piece = [fields for fields in piece if fields]  # blank lines
        for number, fields in enumerate(piece, rows + 1):
            if len(fields) != len(specs):
                raise InvalidArgument(
                    f"row {number} of the CSV has {len(fields)} fields, but its first line names"
                    f" {len(specs)} columns"
                )
        if texts:
            check_bytes_elements(texts * (rows + len(piece)))
        for column, spec, fields in zip(parts, specs, zip(*piece, strict=True), strict=False):
            column.append(_column(spec, fields, rows))
        rows += len(piece)
    inputs.check_rows(rows)
    return {
        spec.name: Tensor(spec.name, spec.datatype, (rows,), np.concatenate(column))
        for spec, column in zip(specs, parts, strict=True)
    }


def _repeated(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)[:64]


def _column(spec: TensorSpec, fields: Sequence[str], before: int) -> np.ndarray:
    """Returns the values of a column in some rows, which `before` rows precede."""
    if spec.datatype is DataType.BYTES:
        return tensor_of(spec, list(fields)).data
    values = []
    for number, text in enumerate(fields, before + 1):
        try:
            values.append(_value(spec, text.strip()))
        except ValueError:
            shown = f"'{text[:40]}'" if text else "an empty field"
            raise InvalidArgument(
                f"row {number} of the CSV has {shown} in column '{spec.name}', which takes"
                f" {'true or false' if spec.datatype is DataType.BOOL else 'numbers'}"
                f" ({spec.datatype.name})"
            ) from None
    return tensor_of(spec, values).data


def _value(spec: TensorSpec, text: str) -> Any:
    """Returns the JSON value that a field stands for. Raises ValueError if it is of no use for the column."""
    lower = text.lower()
    if lower in _WORDS and (spec.column or spec.datatype is DataType.BOOL):
        return _WORDS[lower]
    if "_" in text or not text.isascii():
        raise ValueError
    if spec.datatype.dtype.kind == "f" or spec.datatype is DataType.BF16:
        return _FLOATS[lower] if lower in _FLOATS else float(text)
    if spec.datatype is DataType.BOOL:
        return {"1": True, "0": False}[text] if text in ("0", "1") else float("x")
    if len(text) > 40:  # reading an integer takes quadratic time
        raise ValueError
    try:
        return int(text)
    except ValueError:
        return _whole(float(text))


def _whole(number: float) -> int:
    """Returns a number that was written as 3.0 as an integer. Raises ValueError if it has a fraction."""
    if not number.is_integer():
        raise ValueError
    return int(number)


def write(outputs: Sequence[Tensor], labels: Labels) -> bytes:
    """Returns outputs as CSV. NaN is an empty field, as is an element of BYTES without bytes."""
    rows = row_count(outputs, "CSV")
    columns = [
        (name, tensor.datatype, array)
        for tensor in outputs
        for name, array in split_columns(tensor, labels.get(tensor.name, ()), "CSV")
    ]
    text = StringIO()
    writer = csv.writer(text)
    writer.writerow([name for name, _, _ in columns])
    step = max(PIECE // max(len(columns), 1), 1)
    for start in range(0, rows, step):
        fields = [_fields(datatype, array[start : start + step]) for _, datatype, array in columns]
        writer.writerows(zip(*fields, strict=True))
    return text.getvalue().encode()


def _fields(datatype: DataType, array: np.ndarray) -> list[Any]:
    if datatype is DataType.BYTES:
        return [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in array]
    if datatype is DataType.BOOL:
        return ["true" if one else "false" for one in array.tolist()]
    if datatype is DataType.BF16:
        array = widened(array)
    if array.dtype.kind != "f":
        return list(array.tolist())
    # As text, because an FP32 number needs fewer digits than the FP64 number of the same value.
    return ["" if one == "nan" else one for one in array.astype(np.str_).tolist()]
