"""Type hints that say what a model takes and gives: a datatype and a shape."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, Union, get_args, get_origin

import numpy as np

from backline.engine.datatypes import DataType

if TYPE_CHECKING:
    _Array = np.ndarray
else:
    _Array = object


class OrNone:
    """A hint that is an object, no type: `hint | None`, of an input that may be missing, is the hint, as its default says the rest."""

    __slots__ = ()

    def __or__(self, other: None) -> Self:
        return self if other is None else NotImplemented

    __ror__ = __or__


def without_none(hint: Any) -> Any:
    """X of the hints `X | None` and `Optional[X]`; any other hint as it is."""
    if get_origin(hint) in (Union, UnionType):
        left = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(left) == 1:
            return left[0]
    return hint


@dataclass(frozen=True, slots=True)
class ArrayHint(OrNone):
    """An array of a datatype; -1 in `shape` stands for any size. Without the batch dimension, where the model takes batches."""

    datatype: DataType
    shape: tuple[int, ...]


class _Typed(_Array):
    """An array of one datatype: `FP32[3, 224, 224]`, `FP32[-1]` for any length, `FP32` alone for a single dimension of any length."""

    datatype: ClassVar[DataType]

    def __class_getitem__(cls, shape: int | tuple[int, ...]) -> Any:
        dims = shape if isinstance(shape, tuple) else (shape,)
        if not all(isinstance(dim, int) and dim >= -1 for dim in dims):
            raise TypeError(f"{cls.__name__}{list(dims)}: a shape has sizes, and -1 for any size")
        return ArrayHint(cls.datatype, dims)


def array_hint(hint: Any) -> ArrayHint | None:
    """The datatype and shape that a hint of this module stands for; None for any other."""
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
    """The bits of each number, as uint16: NumPy has no such datatype."""

    datatype = DataType.BF16


class BYTES(_Typed):
    """An object array of `bytes`."""

    datatype = DataType.BYTES


@dataclass(frozen=True, slots=True)
class Request:
    """What a request says beside its inputs: a parameter of `predict` with this type gets it. Not for models that take batches."""

    id: str = ""
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    #: The sequence that the request belongs to, 0 for none, and whether it is its first or last.
    sequence: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    #: Where it stands in a trace, for spans of the model's own: `opentelemetry.propagate.extract` takes it. Empty when it is not traced.
    trace: Mapping[str, str] = field(default_factory=dict)


class Models(Protocol):
    """The other models of the server: a parameter of `predict` with this type gets what `backline.connect` gives to clients.

    In an `async def predict` it is what `backline.connect_async` gives. The deadline and the priority of the request hold for calls, too,
    and they end when nobody waits for the request any more. Without a server, pass a client:

    >>> Model().predict(frames, models=backline.connect("http://localhost:8000"))
    """

    def __getitem__(self, model: str, /) -> Any:
        """A model by its name, to be called with its inputs: `models["pitch"](frames)["output"]`."""

    def model(self, name: str, version: str | int = "") -> Any:
        """A model at a version or a label."""
