"""One input as a request declares it, checked as far as possible without the model."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer, Shape, Tensor, decode_tensor, element_count

#: The maximum number of dimensions of an input: the limit of numpy 1.26, the oldest supported version.
MAX_RANK = 32
#: The maximum number of elements of all BYTES inputs of a request together. On its way through the server and
#: a runtime, each element becomes several Python objects, even if it is empty: it takes up to 300 bytes of
#: memory, and about a microsecond during which the interpreter's lock is held.
MAX_BYTES_ELEMENTS = 1 << 20
#: Takes less time than np.frombuffer and a reshape.
_array = np.ndarray
_MAX_DIMENSION = 2**63 - 1


class InputPlan:
    """An input's name, datatype and shape. `size` is the input's binary length in bytes, or -1 for BYTES
    (variable).
    """

    __slots__ = ("count", "datatype", "dtype", "name", "shape", "size")

    def __init__(self, name: str, datatype_name: str, shape: Shape) -> None:
        self.name = name
        try:
            self.datatype = DataType.from_name(datatype_name)
        except InvalidArgument as error:
            raise InvalidArgument(f"invalid datatype for input {name}: {error.message}") from None
        self.dtype = self.datatype.dtype
        self.shape = shape
        self.count = checked_count(name, self.dtype, shape)
        self.size = self.count * self.datatype.itemsize
        if self.datatype is DataType.BYTES:
            check_bytes_elements(self.count)
            self.size = -1

    def read(self, buffer: Buffer, start: int, end: int) -> Tensor:
        """Returns the tensor in `buffer[start:end]`: a view, unless the datatype is BYTES.

        The caller must check the length against `size`.
        """
        if self.size > 0:
            return Tensor(
                self.name,
                self.datatype,
                self.shape,
                _array(self.shape, self.dtype, buffer, start),
            )
        if self.size:
            return decode_tensor(self.name, self.datatype, self.shape, memoryview(buffer)[start:end])
        return Tensor(self.name, self.datatype, self.shape, np.empty(self.shape, self.dtype))


def check_bytes_elements(count: int) -> None:
    """Raises PayloadTooLarge if `count`, the number of elements of all BYTES inputs of a request, is above
    MAX_BYTES_ELEMENTS.
    """
    if count > MAX_BYTES_ELEMENTS:
        raise PayloadTooLarge(
            f"the BYTES inputs of the request have {count} elements, more than the {MAX_BYTES_ELEMENTS}"
            " allowed; divide them among several requests"
        )


def check_tensors(tensors: Mapping[str, Tensor]) -> None:
    """Raises PayloadTooLarge if the BYTES inputs of a request together have too many elements."""
    if len(tensors) > 1:  # the elements of a single input were checked before they were decoded
        check_bytes_elements(
            sum([one.data.size for one in tensors.values() if one.datatype is DataType.BYTES])
        )


def too_many_dimensions(name: str, rank: int) -> InvalidArgument:
    return InvalidArgument(f"input '{name}' has {rank} dimensions, more than the {MAX_RANK} supported")


def checked_count(name: str, dtype: np.dtype, shape: Shape) -> int:
    """Returns the number of elements in `shape`.

    Raises InvalidArgument for a shape that no array can have.
    """
    if len(shape) > MAX_RANK:
        raise too_many_dimensions(name, len(shape))
    for dimension in shape:
        if dimension < 0:
            raise InvalidArgument(f"input '{name}' has a negative dimension in its shape {list(shape)}")
        if dimension > _MAX_DIMENSION:
            raise InvalidArgument(
                f"input '{name}' has the dimension {dimension} in its shape, which is too large"
            )
    count = element_count(shape)
    if not count:
        try:
            np.empty(shape, dtype)  # allocates nothing, but refuses strides that overflow
        except ValueError:
            raise InvalidArgument(f"input '{name}' has the shape {list(shape)}, which is too large") from None
    return count
