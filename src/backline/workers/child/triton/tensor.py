"""A named tensor, as models create and receive it, and the numbers of Triton's datatypes."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from backline.engine import tensor as engine
from backline.engine.datatypes import DataType
from backline.workers.child.triton import dlpack
from backline.workers.child.triton.errors import TritonModelException

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


class Tensor:
    """A named array in CPU memory. BYTES are object arrays of `bytes`; BF16 passes through DLPack only."""

    __slots__ = ("_array", "_datatype", "_name")

    def __init__(self, name: str, array: np.ndarray) -> None:
        """Raises TypeError for anything but an array, TritonModelException for a dtype that Triton does
        not have.
        """
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(
                f"Tensor: expected a name and a numpy.ndarray, not {type(name).__name__} and"
                f" {type(array).__name__}"
            )
        datatype = numpy_datatype(array.dtype)
        if datatype is None:
            raise TritonModelException("NumPy dtype is not supported.")
        self._set(name, datatype, array if array.flags.c_contiguous else np.ascontiguousarray(array))

    def _set(self, name: str, datatype: DataType, array: np.ndarray) -> None:
        if not name:
            raise TritonModelException("Tensor name cannot be an empty string.")
        self._name = name
        self._datatype = datatype
        self._array = array

    @classmethod
    def of(cls, tensor: engine.Tensor) -> Tensor:
        """The tensor of a request."""
        made = cls.__new__(cls)
        made._name, made._datatype, made._array = tensor.name, tensor.datatype, tensor.data
        return made

    def to_engine(self) -> engine.Tensor:
        """The tensor of a response or a call."""
        return engine.Tensor(self._name, self._datatype, self._array.shape, self._array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        """The array itself, not a copy. Raises TritonModelException for BF16."""
        if self._datatype is DataType.BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack()"
                " instead."
            )
        return self._array

    def triton_dtype(self) -> int:
        """The number of the datatype, as from `numpy_to_triton_type`; 14 for BF16."""
        return NUMBERS[self._datatype]

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """True: workers have no other memory."""
        return True

    def to_dlpack(self) -> Any:
        """A DLPack capsule that shares the tensor's memory."""
        return dlpack.to_capsule(self._datatype, self._array)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """A tensor that shares the memory of a DLPack capsule, or of an object with `__dlpack__`."""
        made = Tensor.__new__(Tensor)
        made._set(name, *dlpack.from_object(tensor))
        return made

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU


def serialize_byte_tensor(input_tensor: np.ndarray) -> bytes | tuple[()] | None:
    """The elements in C order, each after its length in 4 bytes; () for none, None for an array of another
    kind, as in Triton.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return bytes(engine.encode_tensor(engine.Tensor("", DataType.BYTES, input_tensor.shape, input_tensor)))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> np.ndarray:
    """A flat array of the elements. Raises ValueError for truncated bytes."""
    view = memoryview(encoded_tensor).cast("B")
    elements: list[bytes] = []
    at = 0
    while at < len(view):
        start = at + 4
        at = start + int.from_bytes(view[at:start], "little")
        if start > len(view) or at > len(view):
            raise ValueError(f"the bytes end within element {len(elements)}")
        elements.append(bytes(view[start:at]))
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array
