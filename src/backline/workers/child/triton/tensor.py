"""A named tensor, as models create and receive it."""

from __future__ import annotations

from typing import Any

import numpy as np

from backline.engine import tensor as engine
from backline.engine.datatypes import DataType
from backline.workers.child.triton import dlpack
from backline.workers.child.triton.datatypes import NUMBERS, numpy_datatype
from backline.workers.child.triton.errors import TritonModelException


class Tensor:
    """A named array in CPU memory. BYTES are object arrays of `bytes`; BF16 passes through DLPack only."""

    __slots__ = ("_array", "_datatype", "_name")

    def __init__(self, name: str, array: np.ndarray) -> None:
        """Raises TypeError for anything but an array, TritonModelException for a dtype that Triton does
        not have.
        """
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            raise TypeError(
                f"Tensor: expected a name and a numpy.ndarray, not {type(name).__name__} and {type(array).__name__}"
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
                "Tensor dtype is BF16 and cannot be converted to NumPy. Use to_dlpack() and from_dlpack() instead."
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
