"""Type hints for a model's inputs and outputs: arrays, and files that are decoded to arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, Union, get_args, get_origin

import numpy as np

from backline.engine.errors import Internal
from backline.engine.values.datatypes import DataType

if TYPE_CHECKING:
    _Array = np.ndarray
else:
    _Array = object
#: The default limit for a decoded image or sound, in bytes: a small file may decode to a huge array.
DECODED_LIMIT: Final = 256 << 20


class OrNone:
    """A hint that is an object rather than a type. `hint | None` is the hint itself: whether an input is
    optional follows from its default.
    """

    __slots__ = ()

    def __or__(self, other: None) -> Self:
        return self if other is None else NotImplemented

    __ror__ = __or__


def without_none(hint: Any) -> Any:
    """X for `X | None` and `Optional[X]`; other hints unchanged."""
    if get_origin(hint) in (Union, UnionType):
        left = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(left) == 1:
            return left[0]
    return hint


@dataclass(frozen=True, slots=True)
class ArrayHint(OrNone):
    """An array of a datatype; -1 in `shape` is any size. Excludes the batch dimension of models that take
    batches.
    """

    datatype: DataType
    shape: tuple[int, ...]


class _Typed(_Array):
    """An array of one datatype: `FP32[3, 224, 224]`, `FP32[-1]` of any length, `FP32` alone one dimension
    of any length.
    """

    datatype: ClassVar[DataType]

    def __class_getitem__(cls, shape: int | tuple[int, ...]) -> Any:
        dims = shape if isinstance(shape, tuple) else (shape,)
        if not all(isinstance(dim, int) and dim >= -1 for dim in dims):
            raise TypeError(f"{cls.__name__}{list(dims)}: a shape has sizes, and -1 for any size")
        return ArrayHint(cls.datatype, dims)


def array_hint(hint: Any) -> ArrayHint | None:
    """The ArrayHint that a hint stands for; None for any other hint."""
    if isinstance(hint, ArrayHint):
        return hint
    if isinstance(hint, type) and issubclass(hint, _Typed):
        return ArrayHint(hint.datatype, (-1,))
    return None


class BOOL(_Typed):
    datatype = DataType.BOOL


class UINT8(_Typed):
    datatype = DataType.UINT8


class UINT16(_Typed):
    datatype = DataType.UINT16


class UINT32(_Typed):
    datatype = DataType.UINT32


class UINT64(_Typed):
    datatype = DataType.UINT64


class INT8(_Typed):
    datatype = DataType.INT8


class INT16(_Typed):
    datatype = DataType.INT16


class INT32(_Typed):
    datatype = DataType.INT32


class INT64(_Typed):
    datatype = DataType.INT64


class FP16(_Typed):
    datatype = DataType.FP16


class FP32(_Typed):
    datatype = DataType.FP32


class FP64(_Typed):
    datatype = DataType.FP64


class BF16(_Typed):
    """The bits of each number, as uint16: NumPy has no such dtype."""

    datatype = DataType.BF16


class BYTES(_Typed):
    """An object array of `bytes`."""

    datatype = DataType.BYTES


@dataclass(frozen=True, slots=True)
class Request:
    """A request without its inputs: `predict` gets it in a parameter with this type hint. Not for models
    that take batches.
    """

    id: str = ""
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    #: Its sequence, 0 for none, and whether it is the first or last one in it.
    sequence: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    #: Its trace context, for the model's own spans (`opentelemetry.propagate.extract`); empty if it is not
    #: traced.
    trace: Mapping[str, str] = field(default_factory=dict)


class Models(Protocol):
    """The other models of the server: `predict` gets a client, as from `backline.connect`, in a parameter
    with this type hint.

    An `async def predict` gets one as from `backline.connect_async`. Calls inherit the deadline and priority
    of the request, and are cancelled with it. Without a server, pass a client:

    >>> Model().predict(frames, models=backline.connect("http://localhost:8000"))
    """

    def __getitem__(self, model: str, /) -> Any:
        """A model by name, called with its inputs: `models["pitch"](frames)["output"]`."""

    def model(self, name: str, version: str | int = "") -> Any:
        """A model at a version or label."""


class Media(Protocol):
    """Decodes a file to what `predict` gets, and encodes what it returns as a file."""

    def check(self, *, output: bool) -> None:
        """Raises InvalidArgument for a hint without meaning for an input (or output), Internal for a
        missing library.
        """

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """Raises InvalidArgument if the file cannot be decoded, or would exceed `limit` bytes decoded."""

    def encode(self, value: Any) -> bytes:
        """Raises TypeError or ValueError for a value that does not fit the hint."""


def library(module: str, what: str, package: str, extra: str) -> Any:
    """Imports a library. Raises Internal with what to install if it is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Internal(
            f"{what} needs {package} ({error}): pip install 'backline[{extra}]',"
            " or name it in the model's requirements"
        ) from None
