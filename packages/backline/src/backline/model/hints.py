"""Type hints for the inputs and outputs of a model: arrays, and files that are decoded into arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, Self, Union, get_args, get_origin

import numpy as np

from backline_client.values.datatypes import DataType
from backline_client.values.errors import Internal

#: The base class of array hints. Type checkers treat such hints as NumPy arrays.
if TYPE_CHECKING:
    Array = np.ndarray
else:
    Array = object
#: The default limit for the memory, in bytes, that decoding an image or sound takes, all copies included.
#: There has to be a limit because a small file may decode to a huge array.
DECODED_LIMIT: Final = 512 << 20


class OrNone:
    """The base class of hints that are objects rather than types. `hint | None` returns the hint unchanged,
    because only a default value of the parameter makes an input optional.
    """

    __slots__ = ()

    def __or__(self, other: None) -> Self:
        return self if other is None else NotImplemented

    __ror__ = __or__


def without_none(hint: Any) -> Any:
    """Reduces `X | None` and `Optional[X]` to X; returns other hints unchanged."""
    if get_origin(hint) in (Union, UnionType):
        left = [kind for kind in get_args(hint) if kind is not NoneType]
        if len(left) == 1:
            return left[0]
    return hint


@dataclass(frozen=True, slots=True)
class ArrayHint(OrNone):
    """A hint for an array with a datatype and a shape; -1 in the shape means any size. If the model takes
    batches, the shape excludes the batch dimension.
    """

    datatype: DataType
    shape: tuple[int, ...]


class _Typed(Array):
    """The base class of the hints for arrays of one datatype, such as `FP32[3, 224, 224]`; -1 means any size.
    `FP32` alone means `FP32[-1]`.
    """

    datatype: ClassVar[DataType]

    def __class_getitem__(cls, shape: int | tuple[int, ...]) -> Any:
        dims = shape if isinstance(shape, tuple) else (shape,)
        if not all(isinstance(dim, int) and dim >= -1 for dim in dims):
            raise TypeError(f"{cls.__name__}{list(dims)}: expected sizes, or -1 for any size")
        return ArrayHint(cls.datatype, dims)


def array_hint(hint: Any) -> ArrayHint | None:
    """Returns the ArrayHint for a type hint that describes an array; None for any other hint."""
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
    """An array of bfloat16 numbers. The model gets their bits as a uint16 array, because NumPy has no
    bfloat16.
    """

    datatype = DataType.BF16


class BYTES(_Typed):
    """An array of byte strings. The model gets a NumPy array of `bytes` objects."""

    datatype = DataType.BYTES


@dataclass(frozen=True, slots=True)
class Request:
    """The properties of a request other than its inputs. They are passed to `predict` in the parameter with
    this type hint, if there is one. A model with max_batch_size cannot have such a parameter.
    """

    id: str = ""
    parameters: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    #: The id of the request's sequence, 0 if the request belongs to none, and whether the request is the
    #: first or the last of its sequence.
    sequence: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    #: The request's trace context, for the model's own spans (`opentelemetry.propagate.extract`); empty if
    #: the request is not traced.
    trace: Mapping[str, str] = field(default_factory=dict)


class Models(Protocol):
    """A client for the other models of the server, with the interface of the client that `backline.connect`
    returns. The client is passed to `predict` in the parameter with this type hint, if there is one.

    An `async def predict` receives a client with the interface of the client that `backline.connect_async`
    returns. Calls to other models inherit the deadline and priority of the request, and are cancelled when
    the request is cancelled. If no server runs the model, pass a client:

    >>> Model().predict(frames, models=backline.connect("http://localhost:8000"))
    """

    def __getitem__(self, model: str, /) -> Any:
        """Returns the model with this name. Calling the model with its inputs returns its outputs:
        `models["pitch"](frames)["output"]`.
        """

    def model(self, name: str, version: str | int = "") -> Any:
        """Returns the model with this name; `version` optionally gives a version or a label."""


class Media(Protocol):
    """A hint that decodes a file into the value that `predict` gets, and encodes the value that `predict`
    returns as a file.

    `kind` is "image" or "audio".
    """

    kind: ClassVar[str]

    def check(self, *, output: bool) -> None:
        """Raises InvalidArgument if the hint is not valid for an input or, if `output` is set, for an output.
        Raises Internal if a required library is missing.
        """

    def decode(self, data: bytes, limit: int = DECODED_LIMIT) -> Any:
        """Decodes a file. Raises InvalidArgument if the file is invalid, or if decoding it would take more
        than `limit` bytes of memory, as far as its header says.
        """

    def encode(self, value: Any) -> bytes:
        """Encodes a value as a file. Raises TypeError or ValueError if the value does not fit the hint."""


def library(module: str, what: str, package: str, extra: str) -> Any:
    """Imports a library. Raises Internal, with advice on what to install, if the library is missing."""
    try:
        return import_module(module)
    except ImportError as error:
        raise Internal(
            f"{what} needs {package} ({error}): pip install 'backline[{extra}]',"
            " or name it in the model's requirements"
        ) from None
