"""Converts Python values to tensors, and refuses conversions that would lose data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument
from backline_client.values.signature import TensorSpec
from backline_client.values.tensor import Tensor, fits


def to_tensor(model: str, spec: TensorSpec, value: Any) -> Tensor:
    """Converts `value` to the tensor for input `spec` of `model`.

    Arrays (anything with a dtype) are cast only if numpy considers the cast safe, so FP64 is not narrowed to
    FP32. Plain Python numbers take the model's type if they fit. BYTES inputs take str and bytes, and also a
    dict or, if the model expects a list as JSON, a list, which are sent as JSON. Columns of a table take
    None and NaN for missing values, and numbers that fit exactly. No dimension is added,
    except that a single value is accepted for shape [1], which is how servers describe a scalar. A Tensor is
    returned unchanged. Raises InvalidArgument for any other value.
    """
    where = f"input '{spec.name}' of model '{model}'"
    if isinstance(value, Tensor):
        return value
    if spec.column:
        value = _column(spec.datatype, value)
    if spec.datatype is DataType.BYTES:
        data = _bytes_array(where, spec, value)
    elif hasattr(value, "dtype") or hasattr(value, "__array__"):
        data = _from_array(where, spec.datatype, value)
    else:
        data = _from_python(where, spec.datatype, value)
    if not data.shape and (spec.shape == (1,) or spec.json):
        data = data.reshape((1,) * len(spec.shape))
    _check_shape(where, spec, data.shape)
    return Tensor(spec.name, spec.datatype, data.shape, data)


def _column(datatype: DataType, value: Any) -> Any:
    """Returns the values of a table's column, such as a Series of pandas, with numbers and missing values in
    the column's type. Returns anything that does not fit the column unchanged.
    """
    array = np.asarray(value, np.object_ if isinstance(value, list | tuple) else None)
    if array.dtype.kind == "O":
        missing = np.array([_is_missing(one) for one in array.reshape(-1).tolist()], np.bool_)
        filled = array.reshape(-1).copy()
        filled[missing] = "" if datatype is DataType.BYTES else math.nan
        array = filled.reshape(array.shape)
        if datatype is DataType.BYTES:
            return array
        if not all(isinstance(one, int | float | np.number | np.bool_) for one in filled.tolist()):
            return value
        array = array.astype(np.float64)
    if datatype is DataType.BYTES or array.dtype.kind not in "biuf":
        return value
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(datatype.dtype)
    return cast if np.array_equal(cast, array, equal_nan=array.dtype.kind == "f") else value


def _is_missing(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or type(value).__name__ in ("NAType", "NaTType")  # pandas' own


def _from_array(where: str, datatype: DataType, value: Any) -> np.ndarray:
    try:
        data = np.asarray(value)
    except Exception as error:  # raised for example for a torch tensor on a GPU; its message says what to do
        raise InvalidArgument(
            f"{where}: {type(value).__name__} cannot be converted to an array: {error}"
        ) from None
    if datatype is DataType.BF16 and data.dtype.name == "bfloat16":
        return data.view(np.uint16)
    target = datatype.dtype
    if data.dtype == target:
        return data
    if (
        datatype is not DataType.BF16
        and data.dtype.kind not in "OSUV"
        and np.can_cast(data.dtype, target, "safe")
    ):
        return data.astype(target)
    if datatype is DataType.BF16:
        raise InvalidArgument(
            f"{where} expects BF16 (bfloat16 of ml_dtypes, or its bits as uint16), got {data.dtype}"
        )
    raise InvalidArgument(
        f"{where} expects {datatype.name} ({target}), got an array of {data.dtype};"
        f" if losing precision is intended, convert it first: .astype('{target}')"
    )


def _from_python(where: str, datatype: DataType, value: Any) -> np.ndarray:
    try:
        data = np.asarray(value)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(f"{where}: the nested lists do not form an array ({error})") from None
    kind = data.dtype.kind
    if data.size == 0:
        kind = "b"  # an empty list fits any datatype
    target = datatype.dtype
    if datatype is DataType.BF16:
        if kind in "biuf":
            return _to_bfloat16(data.astype(np.float32))
    elif kind == "b" and (target.kind == "b" or data.size == 0):
        return data.astype(target)
    elif kind in "iu" and target.kind in "iu":
        bounds, low, high = np.iinfo(target), int(data.min()), int(data.max())
        if low < bounds.min or high > bounds.max:
            raise InvalidArgument(
                f"{where} expects {datatype.name} ({bounds.min} to {bounds.max}), got"
                f" {low if low < bounds.min else high}"
            )
        return data.astype(target)
    elif kind in "iuf" and target.kind == "f":
        with np.errstate(over="ignore"):
            cast = data.astype(target)
        if not np.array_equal(np.isinf(cast), np.isinf(data)):
            raise InvalidArgument(
                f"{where} expects {datatype.name}, got numbers beyond ±{np.finfo(target).max:.5g}"
            )
        return cast
    raise InvalidArgument(f"{where} expects {datatype.name}, got Python {_python_kind(data)}")


def _python_kind(data: np.ndarray) -> str:
    names = {
        "b": "bools",
        "i": "integers",
        "u": "integers",
        "f": "floats",
        "c": "complex numbers",
        "U": "strings",
        "S": "bytes",
    }
    if data.dtype.kind in names:
        return names[data.dtype.kind]
    return f"objects of {type(data.reshape(-1)[0]).__name__}" if data.size else "objects"


def _to_bfloat16(data: np.ndarray) -> np.ndarray:
    """Returns the bfloat16 bits of float32 numbers, rounded to nearest, ties to even. NaN remains NaN."""
    bits = data.view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(data), np.uint32(0x7FC0), rounded).astype(np.uint16)


def _as_json(where: str, value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"{where} cannot be converted to JSON: {error}") from None


def _bytes_array(where: str, spec: TensorSpec, value: Any) -> np.ndarray:
    if isinstance(value, dict) or (spec.json == "list" and isinstance(value, (list, tuple))):
        value = _as_json(where, value)
    if isinstance(value, (bytes, bytearray, memoryview)):  # numpy would drop trailing zero bytes
        data = np.empty((), np.object_)
        data[()] = bytes(value)
        return data
    if not hasattr(value, "dtype"):
        value = _object_array(where, value)
    data = np.asarray(value)
    if data.dtype.kind not in "OSU":
        raise InvalidArgument(f"{where} expects BYTES (str or bytes), got an array of {data.dtype}")
    encoded = np.empty(data.shape, np.object_)
    flat = encoded.reshape(-1)
    for index, element in enumerate(data.reshape(-1).tolist()):
        if isinstance(element, str):
            flat[index] = element.encode()
        elif isinstance(element, (bytes, bytearray, memoryview)):
            flat[index] = bytes(element)
        elif isinstance(element, dict) or (spec.json == "list" and isinstance(element, (list, tuple))):
            flat[index] = _as_json(where, element)
        else:
            raise InvalidArgument(
                f"{where} expects BYTES (str or bytes), got {type(element).__name__} at position {index};"
                " if the model expects a list as JSON, pass json.dumps(...)"
            )
    return encoded


def _object_array(where: str, value: Any) -> np.ndarray:
    """Converts nested lists to an object array: numpy's fixed-width strings lose trailing zero bytes."""
    shape: list[int] = []
    level = value
    while isinstance(level, (list, tuple)):
        shape.append(len(level))
        if not level:
            break
        level = level[0]
    data = np.empty(tuple(shape), np.object_)
    flat: Iterable[Any] = [value]
    for size in shape:
        nested = list(flat)
        if any(not isinstance(part, (list, tuple)) or len(part) != size for part in nested):
            raise InvalidArgument(f"{where}: the nested lists do not form an array")
        flat = [element for part in nested for element in part]
    target = data.reshape(-1)
    for index, element in enumerate(flat):
        target[index] = element
    return data


def _check_shape(where: str, spec: TensorSpec, got: tuple[int, ...]) -> None:
    expected = spec.shape
    # An empty shape means a scalar, or a shape that the server does not know; only the server can check it.
    if not expected or fits(expected, got):
        return
    missing = ". The first dimension, usually the batch, is missing: pass x[None]"
    hint = missing if fits(expected[1:], got) else ""
    raise InvalidArgument(f"{where} expects shape {list(expected)}, got {list(got)}{hint}")
