"""Tensors shared with other libraries without a copy: DLPack (https://dmlc.github.io/dlpack/latest/)."""

from __future__ import annotations

import ctypes
import math
from typing import Any, Final

import numpy as np

from backline.engine.datatypes import DataType
from backline.workers.child.triton.errors import TritonModelException

#: kDLCPU.
CPU: Final = (1, 0)
_CODES: Final = {"i": 0, "u": 1, "f": 2, "b": 6}
_UNSIGNED, _BFLOAT = 1, 4
_NAME: Final = b"dltensor"
#: With Triton's spaces.
_NOT_SUPPORTED: Final = (
    "Provided tensor is not supported. Tensor must be a DLPack capsule "
    "        or have `__dlpack__` and `__dlpack_device__` attributes"
)


class _Tensor(ctypes.Structure):
    """DLTensor."""

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


_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
_is_valid = ctypes.pythonapi.PyCapsule_IsValid
_is_valid.restype, _is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)


class _Capsule:
    """An object that NumPy accepts: it returns the capsule."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU


def to_capsule(datatype: DataType, array: np.ndarray) -> Any:
    """A capsule that shares the memory of an array. Raises TritonModelException for BYTES."""
    if datatype is DataType.BYTES:
        raise TritonModelException("DLPack does not have support for string tensors.")
    if not array.flags.writeable:  # DLPack cannot express read-only memory
        array = array.copy()
    capsule = array.__dlpack__()
    if datatype is DataType.BF16:  # NumPy exports it as uint16
        _tensor(capsule).code = _BFLOAT
    return capsule


def from_object(given: Any) -> tuple[DataType, np.ndarray]:
    """The datatype and the array of a capsule, or of an object that returns one.

    Raises TritonModelException for memory of another device, and for tensors that are not contiguous in C
    order.
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
        raise TritonModelException(
            "Provided tensor is not supported. Tensor must be a DLPack capsule         or have `__dlpack__`"
            " and `__dlpack_device__` attributes"
        )
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
            "the DLPack capsule was taken before, or is of a version that is not supported"
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
