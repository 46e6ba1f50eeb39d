"""Named tensors that models create and receive, their exchange through DLPack, and Triton's datatypes."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final

import numpy as np

from backline.workers.child.triton.errors import TritonModelException
from backline_client.values import tensor as engine
from backline_client.values.datatypes import DataType

#: DLPack's device for tensors in CPU memory: the type kDLCPU and the index.
CPU: Final = (1, 0)
_CODES: Final = {"i": 0, "u": 1, "f": 2, "b": 6}
_UNSIGNED, _BFLOAT = 1, 4
_NAME: Final = b"dltensor"
#: Triton's text, including its odd spaces.
_NOT_SUPPORTED: Final = (
    "Provided tensor is not supported. Tensor must be a DLPack capsule "
    "        or have `__dlpack__` and `__dlpack_device__` attributes"
)


class _Tensor(ctypes.Structure):
    """DLPack's struct DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


# Functions of our own: the result types of those in ctypes.pythonapi are shared by all packages.
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


class _Capsule:
    """Wraps a capsule in an object with the methods that np.from_dlpack calls."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def to_capsule(datatype: DataType, array: np.ndarray) -> Any:
    """Returns a DLPack capsule that shares the memory of an array or, if the array is read-only, of a copy.
    Raises TritonModelException for BYTES.
    """
    if datatype is DataType.BYTES:
        raise TritonModelException("DLPack does not have support for string tensors.")
    if not array.flags.writeable:  # DLPack cannot express read-only memory
        array = array.copy()
    capsule = array.__dlpack__()
    if datatype is DataType.BF16:  # NumPy exports BF16 as uint16
        _tensor(capsule).code = _BFLOAT
    return capsule


def from_object(given: Any) -> tuple[DataType, np.ndarray]:
    """Returns the datatype and the array of a DLPack capsule, or of an object with `__dlpack__`.

    Raises TritonModelException if the tensor is not in CPU memory, not contiguous in C order, or of an
    unsupported datatype.
    """
    capsule = given if _is_valid(given, _NAME) else _ask(given)
    tensor = _tensor(capsule)
    if tensor.device_type != CPU[0]:
        raise _elsewhere(tensor.device_type)
    datatype = _datatype(tensor)
    if not _is_contiguous(tensor):
        raise TritonModelException(
            "DLPack tensor is not contiguous. Only contiguous DLPack tensors that are stored in C-Order are"
            " supported."
        )
    if datatype is DataType.BF16:
        tensor.code = _UNSIGNED
    return datatype, np.from_dlpack(_Capsule(capsule))


def _ask(given: Any) -> Any:
    device = getattr(given, "__dlpack_device__", None)
    if device is None or not hasattr(given, "__dlpack__"):
        raise TritonModelException(_NOT_SUPPORTED)
    kind = int(device()[0])
    if kind != CPU[0]:
        raise _elsewhere(kind)
    return given.__dlpack__()


def _elsewhere(device: int) -> TritonModelException:
    return TritonModelException(
        f"DLDevice type {device} is not support by Python backend. Copy the tensor to the CPU first."
    )


def _tensor(capsule: Any) -> _Tensor:
    if not _is_valid(capsule, _NAME):
        raise TritonModelException(
            "the DLPack capsule has already been consumed, or its version is not supported"
        )
    return _Tensor.from_address(_pointer(capsule, _NAME))


def _datatype(tensor: _Tensor) -> DataType:
    if tensor.code == _BFLOAT and tensor.lanes == 1:
        if tensor.bits != DataType.BF16.itemsize * 8:
            raise TritonModelException(f"Expected BF16 tensor to have 16 bits, but had: {tensor.bits}")
        return DataType.BF16
    for datatype in DataType:
        dtype = datatype.dtype
        if (
            datatype not in (DataType.BF16, DataType.BYTES)
            and (_CODES[dtype.kind], dtype.itemsize * 8) == (tensor.code, tensor.bits)
            and tensor.lanes == 1
        ):
            return datatype
    raise TritonModelException(f'DType code "{tensor.code}" is not supported.')


def _is_contiguous(tensor: _Tensor) -> bool:
    if not tensor.strides:
        return True
    shape = tensor.shape[: tensor.ndim]
    if math.prod(shape) == 0:
        return True
    expected = 1
    for size, stride in zip(reversed(shape), reversed(tensor.strides[: tensor.ndim]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


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
#: TRITONSERVER_datatype_enum (core: include/triton/core/tritonserver.h), in which 0 is the invalid datatype.
NUMBERS: Final = {datatype: number for number, datatype in enumerate(_BY_NUMBER, 1)}

TRITON_STRING_TO_NUMPY: Final[dict[str, Any]] = {
    datatype.config_name: bool if datatype is DataType.BOOL else datatype.dtype.type
    for datatype in _BY_NUMBER
    if datatype is not DataType.BF16
}


def triton_to_numpy_type(data_type: int) -> Any:
    """Returns the NumPy type for a Triton datatype number, or None if NumPy has no such type."""
    if not 1 <= data_type <= NUMBERS[DataType.BYTES]:
        return None
    return _BY_NUMBER[data_type - 1].dtype.type


def numpy_to_triton_type(data_type: Any) -> int | None:
    """Returns the Triton datatype number for a NumPy type, or None if no datatype fits."""
    datatype = numpy_datatype(data_type)
    return None if datatype is None else NUMBERS[datatype]


def numpy_datatype(data_type: Any) -> DataType | None:
    """Returns the datatype for a NumPy type. Returns None if no datatype fits, as for np.str_: models must
    encode strings to bytes.
    """
    if data_type in (np.object_, np.bytes_) or getattr(data_type, "kind", "") == "S":
        return DataType.BYTES
    return next((datatype for datatype in _BY_NUMBER[:12] if data_type == datatype.dtype.type), None)


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Returns the NumPy type of a configuration's datatype ("TYPE_FP32"). Raises KeyError if there is
    none.
    """
    return TRITON_STRING_TO_NUMPY[triton_type_string]


class Tensor:
    """A named array in CPU memory. A BYTES tensor is an object array of `bytes`. A BF16 tensor can be
    exchanged only through DLPack.
    """

    __slots__ = ("_array", "_datatype", "_name")

    def __init__(self, name: str, array: np.ndarray) -> None:
        """Raises TypeError for arguments of other types, and TritonModelException for an empty name or a
        dtype that Triton lacks.
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
        """Wraps a tensor that the worker received."""
        made = cls.__new__(cls)
        made._name, made._datatype, made._array = tensor.name, tensor.datatype, tensor.data
        return made

    def to_engine(self) -> engine.Tensor:
        """Returns the tensor for a response or a call."""
        return engine.Tensor(self._name, self._datatype, self._array.shape, self._array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        """Returns the array itself, not a copy. Raises TritonModelException for BF16."""
        if self._datatype is DataType.BF16:
            raise TritonModelException(
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack()"
                " instead."
            )
        return self._array

    def triton_dtype(self) -> int:
        """Returns the Triton datatype number, as `numpy_to_triton_type` does, but 14 for BF16."""
        return NUMBERS[self._datatype]

    def shape(self) -> list[int]:
        return list(self._array.shape)

    def is_cpu(self) -> bool:
        """Always true, because workers keep tensors in CPU memory."""
        return True

    def to_dlpack(self) -> Any:
        """Returns a DLPack capsule of the tensor; see `to_capsule`."""
        return to_capsule(self._datatype, self._array)

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> Tensor:
        """Returns a tensor that shares the memory of a DLPack capsule, or of an object with `__dlpack__`."""
        made = Tensor.__new__(Tensor)
        made._set(name, *from_object(tensor))
        return made

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        return self.to_dlpack()

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def serialize_byte_tensor(input_tensor: np.ndarray) -> bytes | tuple[()] | None:
    """Encodes the elements in C order, each preceded by its length in 4 bytes. As in Triton, returns () for
    an empty array, and None for an array of another datatype.
    """
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype.kind not in "OS":
        return None
    return bytes(engine.encode_tensor(engine.Tensor("", DataType.BYTES, input_tensor.shape, input_tensor)))


def deserialize_bytes_tensor(encoded_tensor: bytes) -> np.ndarray:
    """Decodes the elements to a flat array. Raises ValueError if the bytes are truncated."""
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
