"""The numbers of Triton's datatypes, and their NumPy types."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from backline.engine.datatypes import DataType

_BY_NUMBER: Final = (
    DataType.BOOL,
    DataType.UINT8,
    DataType.UINT16,
    DataType.UINT32,
    DataType.UINT64,
    DataType.INT8,
    DataType.INT16,
    DataType.INT32,
    DataType.INT64,
    DataType.FP16,
    DataType.FP32,
    DataType.FP64,
    DataType.BYTES,
    DataType.BF16,
)
#: TRITONSERVER_datatype_enum (core: include/triton/core/tritonserver.h); 0 is no datatype.
NUMBERS: Final = {datatype: number for number, datatype in enumerate(_BY_NUMBER, 1)}

TRITON_STRING_TO_NUMPY: Final[dict[str, Any]] = {
    datatype.config_name: bool if datatype is DataType.BOOL else datatype.dtype.type
    for datatype in _BY_NUMBER
    if datatype is not DataType.BF16
}


def triton_to_numpy_type(data_type: int) -> Any:
    """The NumPy type of a datatype's number; None if NumPy has none."""
    if not 1 <= data_type <= NUMBERS[DataType.BYTES]:
        return None
    return _BY_NUMBER[data_type - 1].dtype.type


def numpy_to_triton_type(data_type: Any) -> int | None:
    """The number of the datatype of a NumPy type; None if there is none."""
    datatype = numpy_datatype(data_type)
    return None if datatype is None else NUMBERS[datatype]


def numpy_datatype(data_type: Any) -> DataType | None:
    """The datatype of a NumPy type. Strings (np.str_) have none: a model encodes them."""
    if data_type in (np.object_, np.bytes_) or getattr(data_type, "kind", "") == "S":
        return DataType.BYTES
    return next((datatype for datatype in _BY_NUMBER[:12] if data_type == datatype.dtype.type), None)


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """The NumPy type of a configuration's datatype ("TYPE_FP32"). Raises KeyError if NumPy has none."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]
