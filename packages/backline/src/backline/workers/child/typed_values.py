"""Converts tensors to Python values and back, according to type hints: arrays, text, bytes, numbers, JSON,
images and audio.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_origin

import numpy as np

from backline.model.audio import audio_hint
from backline.model.hints import DECODED_LIMIT, Media, array_hint
from backline.model.image import image_hint
from backline.workers.channel.protocol import Spec
from backline_client.values.datatypes import DataType
from backline_client.values.errors import BacklineError, InvalidArgument
from backline_client.values.tensor import Tensor, fits

if TYPE_CHECKING:
    from backline.workers.child.decoder import Decoder

_SINGLE: Mapping[type, DataType] = {
    str: DataType.BYTES,
    bytes: DataType.BYTES,
    bool: DataType.BOOL,
    int: DataType.INT64,
    float: DataType.FP64,
    dict: DataType.BYTES,
    list: DataType.BYTES,
}


@dataclass(frozen=True, slots=True)
class TypedValue:
    """An input or output, as its type hint describes it. `kind` is the Python type of a single value, or None
    for an array.

    `media` is the hint of an image or audio file. `limit` is the number of bytes of memory that decoding the
    file may take.
    """

    name: str
    kind: type | None
    datatype: DataType
    shape: tuple[int, ...]
    optional: bool = False
    media: Media | None = None
    limit: int = DECODED_LIMIT

    @classmethod
    def of(
        cls,
        name: str,
        hint: Any,
        where: str,
        *,
        optional: bool = False,
        output: bool = False,
        limit: int = DECODED_LIMIT,
    ) -> TypedValue:
        """Creates a TypedValue from a type hint. Raises InvalidArgument if the hint is unsupported, or
        Internal if a library that it needs is missing.
        """
        try:
            media: Media | None = image_hint(hint) or audio_hint(hint)
            if media is not None:
                media.check(output=output)
                return cls(name, bytes, DataType.BYTES, (1,), optional, media, limit)
        except BacklineError as error:
            raise type(error)(f"{where}: '{name}': {error.message}") from None
        if (array := array_hint(hint)) is not None:
            return cls(name, None, array.datatype, array.shape, optional)
        kind = get_origin(hint) or hint
        if isinstance(kind, type) and kind in _SINGLE:
            return cls(name, kind, _SINGLE[kind], (1,), optional)
        if kind is np.ndarray:
            raise InvalidArgument(
                f"{where}: the type hint of '{name}' is numpy.ndarray, which says neither datatype nor shape:"
                " import FP32 or another datatype from backline.model, and write FP32[16], or FP32[-1] for"
                " any length"
            )
        wrong = f"'{name}' has no type hint" if hint is None else f"the type hint of '{name}' is {hint!r}"
        raise InvalidArgument(
            f"{where}: {wrong}; expected FP32[16] or another datatype of backline.model, str, bytes, int,"
            " float, bool, dict, list, Image or Audio[16000]"
        )

    @property
    def spec(self) -> Spec:
        json = "object" if self.kind is dict else "list" if self.kind is list else ""
        media = self.media.kind if self.media else ""
        return Spec(self.name, self.datatype.name, list(self.shape), self.optional, json=json, media=media)

    def to_python(self, tensor: Tensor, decoder: Decoder | None) -> Any:
        """Returns the value that the model gets. Raises InvalidArgument for invalid text, JSON, images and
        audio. Images and audio need a decoder.
        """
        if self.kind is None:
            return tensor.data
        value = tensor.data.reshape(-1)[0]
        if self.media is not None:
            assert decoder is not None, "an input is an image or audio"
            try:
                return decoder.decode(self.media, value, self.limit)
            except InvalidArgument as error:
                raise InvalidArgument(f"input '{self.name}': {error.message}") from None
        try:
            if self.kind is bytes:
                return value
            if self.kind is str:
                return value.decode()
            if self.kind in (dict, list):
                read = json.loads(value)
                if not isinstance(read, self.kind):
                    raise ValueError(f"it is a {type(read).__name__}")
                return read
            return self.kind(value)
        except ValueError as error:
            expected = "text in UTF-8" if self.kind is str else f"JSON for a {self.kind.__name__}"
            raise InvalidArgument(f"input '{self.name}' is not {expected}: {error}") from None

    def to_tensor(self, value: Any, rows: int | None) -> Tensor:
        """Returns the tensor for a value that the model returned. `rows` is the batch size, or None without a
        batch. Raises TypeError or ValueError if the value contradicts the hint.
        """
        if value is None:  # which NumPy would turn into NaN, and JSON into null
            raise TypeError(f"output '{self.name}' is None; is a return statement missing?")
        if self.kind is None:
            return self._array(value, rows)
        if self.media is not None:
            try:
                value = self.media.encode(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"output '{self.name}': {error}") from None
        elif self.kind in (dict, list):
            value = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        elif self.kind in (str, bytes):
            if not isinstance(value, str if self.kind is str else (bytes, bytearray, memoryview)):
                got, expected = type(value).__name__, self.kind.__name__
                raise TypeError(f"output '{self.name}' is a {got}, but the type hint says {expected}")
            value = value.encode() if isinstance(value, str) else bytes(value)
        data = np.empty(1, self.datatype.dtype)
        data[0] = value
        return Tensor(self.name, self.datatype, (1,), data)

    def to_flat(self, value: Any) -> Tensor:
        """Returns the flat tensor for an array that the model returned for several requests. Raises TypeError
        if the array contradicts the hint.
        """
        data = self._typed(value).reshape(-1)
        return Tensor(self.name, self.datatype, data.shape, data)

    def _typed(self, value: Any) -> np.ndarray:
        data = np.asarray(value)
        if data.dtype != self.datatype.dtype:
            if self.datatype is not DataType.BYTES and not np.can_cast(
                data.dtype, self.datatype.dtype, "same_kind"
            ):
                raise TypeError(
                    f"output '{self.name}' has dtype {data.dtype},"
                    f" but the type hint says {self.datatype.name}"
                )
            data = data.astype(self.datatype.dtype)
        return data

    def _array(self, value: Any, rows: int | None) -> Tensor:
        data = self._typed(value)
        expected = self.shape if rows is None else (rows, *self.shape)
        if not fits(expected, data.shape):
            raise ValueError(f"output '{self.name}' has shape {list(data.shape)}, expected {list(expected)}")
        return Tensor(self.name, self.datatype, data.shape, data)
