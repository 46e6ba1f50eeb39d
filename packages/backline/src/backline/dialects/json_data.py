"""Encodes and decodes tensors in JSON: numbers, booleans or strings, nested or flat, in row-major order.

In requests, a string that is not UTF-8 is an object with base64, as in TensorFlow Serving: {"b64": "..."}.
An FP32 or FP64 number may also be null or "NaN", for a missing value, "Infinity" or "-Infinity". Clients may
write these words without quotes, as in Triton and TensorFlow Serving, although JSON does not have such words.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
import orjson

from backline.dialects.input_plan import InputPlan
from backline.dialects.json_scan import STEP, contains, count, parts
from backline.dialects.off_loop import PIECE, stop_if_abandoned
from backline_client.values.datatypes import DataType
from backline_client.values.decodable import decodable
from backline_client.values.errors import InvalidArgument
from backline_client.values.tensor import Buffer, Tensor, wrong_count

#: The maximum depth of nested lists.
MAX_DEPTH: Final = 100
#: The format of one element in the module `struct`, which refuses numbers that are out of range.
_FORMATS: Final = {
    DataType.BOOL: "?",
    DataType.UINT8: "B",
    DataType.UINT16: "H",
    DataType.UINT32: "I",
    DataType.UINT64: "Q",
    DataType.INT8: "b",
    DataType.INT16: "h",
    DataType.INT32: "i",
    DataType.INT64: "q",
    DataType.FP32: "f",
    DataType.FP64: "d",
}

#: Characters as integers: a search for one in bytes is several times as fast as a search for a bytes object.
_R, _L, _N = b"rln"


@lru_cache(128)
def _packer(count: int, element: str) -> Callable[..., bytes]:
    """Returns a function that packs `count` values. Parsing the format takes as long as packing a few
    values.
    """
    return struct.Struct(f"={count}{element}").pack


def read_numbers(datatype: DataType, text: bytes) -> np.ndarray | None:
    """Returns the elements of a list as `pack_numbers` reads it, as a flat read-only array; None if that
    function returns None.
    """
    packed = pack_numbers(datatype, text)
    return None if packed is None else np.frombuffer(packed, datatype.dtype)


def pack_numbers(datatype: DataType, text: bytes) -> bytes | None:
    """Returns the elements of a list, possibly nested, in row-major order, in binary form.

    Returns None for anything else: malformed JSON, a list that has no elements or is nested unevenly or more
    than MAX_DEPTH levels deep, numbers out of range, and other values. The caller then determines what is
    wrong. The caller also compares the number of elements with the shape.
    """
    element = _FORMATS.get(datatype)
    if element is None:
        return None
    boolean = element == "?"
    if not boolean and (_R in text or _L in text):  # true, false, null
        return None
    try:
        values = orjson.loads(text)
        if type(values) is not list or not values:
            return None
        if type(values[0]) is list:
            values = _flat(values)
        if boolean and set(map(type, values)) != {bool}:
            return None
        return _packer(len(values), element)(*values)
    except (ValueError, TypeError, OverflowError, struct.error):
        return None


def _flat(values: list[Any]) -> list[Any]:
    """Returns the elements of nested lists.

    Raises ValueError for a list that is nested unevenly or more than MAX_DEPTH levels deep, or that contains
    an empty list.
    """
    for _ in range(MAX_DEPTH):
        if type(values[0]) is not list:
            return values
        if not all(values):
            raise ValueError("a list is empty")
        values = list(chain.from_iterable(values))
    raise ValueError(f"the lists are nested more than {MAX_DEPTH} levels deep")


def write_numbers(data: np.ndarray) -> bytes:
    """Writes the elements of an array as a flat list. An FP32 number gets only as many digits as distinguish
    it from all other FP32 numbers.

    Numbers that are not finite are written as null. Large arrays are written in pieces, between which other
    threads can run.
    """
    flat = data.ravel()
    if flat.size <= PIECE:
        return orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    pieces = (
        memoryview(orjson.dumps(flat[start : start + PIECE], option=orjson.OPT_SERIALIZE_NUMPY))[1:-1]
        for start in range(0, flat.size, PIECE)
    )
    return b"".join((b"[", b",".join(pieces), b"]"))


def write_nested(data: np.ndarray) -> bytes:
    """Writes an array of numbers or booleans as nested lists, or a scalar as itself.

    Numbers that are not finite are written as the words NaN, Infinity and -Infinity. Large arrays are written
    in pieces, between which other threads can run.
    """
    if data.size > PIECE:
        return in_pieces(data, _write_lists)
    return _write_lists(data) if data.ndim else _write_lists(data.reshape(1))[1:-1]


def _write_lists(data: np.ndarray) -> bytes:
    if not data.flags.c_contiguous:
        data = np.ascontiguousarray(data)
    text = orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY)
    if _N not in text or data.dtype.kind != "f":  # no number has become null
        return text
    return _encode_words(data.tolist())


def in_pieces(data: np.ndarray, encode: Callable[[np.ndarray], bytes]) -> bytes:
    """Encodes an array with more than PIECE elements as a JSON list; `encode` encodes a part of it, which has
    all dimensions.
    """
    row = data.size // len(data)
    if row > PIECE:
        parts = [in_pieces(part, encode) for part in data]
    else:
        rows = PIECE // row
        parts = [encode(data[start : start + rows])[1:-1] for start in range(0, len(data), rows)]
    return b"[%b]" % b",".join(parts)


#: A list with more characters than this is decoded in pieces of this size.
LARGE = 64 * 1024
#: Triton's texts for data whose length does not match the shape, and for data that is not a list.
_OTHER_SHAPE = "Unable to parse 'data': Shape does not match true shape of 'data' field"
_NO_LIST = "Unable to parse 'data': attempt to access JSON non-array as array"
#: Finds a number whose exponent has three or more digits.
_EXTREME = re.compile(rb"[eE][+-]?0*[1-9][0-9]{2}")
#: The words for numbers that are not finite, and what finds them.
NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_WORDS = (b"NaN", b"Infinity")
_WORD = re.compile(rb"NaN|-?Infinity")
#: Bytes that UTF-8 does not have, in place of the initials of words.
_HIDDEN = b"\xf8\xf9"
_HIDE = np.frombuffer(bytes.maketrans(b"NI", _HIDDEN), np.uint8)
_SHOW = bytes.maketrans(_HIDDEN, b"NI")
#: The longest start of a word that may end a piece of text.
_CUT_OFF = len(b"-Infinity") - 1
#: How the decoder's error for a string that is no number begins, and the strings that are numbers.
_NO_WORD = "Invalid enum value"
_SPELLED = ", ".join(f'"{word}"' for word in NOT_FINITE)
_NO_STRING = "Unable to parse JSON bytes array: attempt to access JSON non-string as string"
#: For each kind of numpy dtype: Triton's words for a valid element, and for the type that Triton reads it as.
_READ_AS = {
    "b": ("boolean", "boolean"),
    "i": ("signed-integer", "signed-integer"),
    "u": ("unsigned-integer", "unsigned-integer"),
    "f": ("number", "double"),
}
_BINARY_ONLY = (DataType.FP16, DataType.BF16)
_BLANK = b" \t\r\n"
_encode = msgspec.json.Encoder().encode
#: For each byte: whether it may occur between the strings of a list.
_BETWEEN = np.isin(np.arange(256), list(b"[]," + _BLANK))


def decode_data(spec: InputPlan, raw: bytes, path: str) -> Tensor:
    """Returns the tensor whose elements are the well-formed JSON `raw`, found at `path` in the document.

    In large data, the number of elements is checked against the shape before anything is allocated. Raises
    InvalidArgument if the elements do not fit the shape or the datatype.
    """
    name, datatype = spec.name, spec.datatype
    if datatype in _BINARY_ONLY:
        raise InvalidArgument(
            f"receiving {datatype.name} data via JSON is not supported. Please use the binary data"
            f" format for input {name}"
        )
    depth = _depth(raw, name)
    large = len(raw) > LARGE and depth > 0
    if spec.count == 0:
        if _has_more(raw, b"[]," + _BLANK):
            raise InvalidArgument(
                f"{_OTHER_SHAPE}: input '{name}' has the shape {list(spec.shape)}, which has no elements"
            )
        return Tensor(name, datatype, spec.shape, np.empty(spec.shape, spec.dtype))
    if depth and not large:
        array = read_numbers(datatype, raw)
        if array is not None and len(array) == spec.count:
            return Tensor(name, datatype, spec.shape, array.reshape(spec.shape))
    if datatype is not DataType.BYTES:  # nested lists, none of them empty, have one more element than commas
        commas = raw.count(b",") if len(raw) <= LARGE else count(raw, ord(","))
        got = commas + 1 if _has_more(raw, b"[]" + _BLANK) else 0
        _compare_count(spec, got, _OTHER_SHAPE if depth else _NO_LIST)
    elif spec.count * 3 - 1 > len(raw):  # a string and its comma take at least three characters
        raise wrong_count(name, spec.count, count(raw, ord('"')) // 2, f" (in {len(raw)} characters)")
    encoded = datatype is DataType.BYTES and _first_element(raw) == ord("{")
    if large and datatype is DataType.BYTES and not encoded:
        return Tensor(name, datatype, spec.shape, _decode_strings(spec, raw).reshape(spec.shape))
    if large:
        dense = raw if depth == 1 and raw[-1:] == b"]" else _without_blanks(raw)
        return Tensor(
            name,
            datatype,
            spec.shape,
            _decode_pieces(spec, dense, depth, encoded=encoded).reshape(spec.shape),
        )
    try:
        mixed = datatype is DataType.BYTES and b"{" in raw
        decoder = _decoder(str | _Encoded if mixed else _ELEMENTS[datatype], depth)
        values = decode_list(decoder, raw, strings=datatype is DataType.BYTES)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = _reason(error).replace("`$", "`" + path)
        hint = '. A string that is not UTF-8 is written as {"b64": "..."}' if encoded else ""
        raise InvalidArgument(f"{_begin(datatype, reason)}: input '{name}': {reason}{hint}") from None
    if depth == 0:
        values = [values]
    for _ in range(depth - 1):
        values = list(chain.from_iterable(values))
    _compare_count(spec, len(values))
    return Tensor(name, datatype, spec.shape, _array(spec, values).reshape(spec.shape))


def decode_list(
    decoder: msgspec.json.Decoder[Any], raw: bytes | msgspec.Raw, *, strings: bool = False
) -> Any:
    """Decodes well-formed JSON as `decoder` does. Raises DecodeError, for example for a number out of range.

    msgspec takes 10 microseconds for a number near the limits of FP64, such as 1e308, so the standard library
    decodes lists that contain such a number. It is not used if the elements may be `strings`, because it
    accepts unpaired surrogates, which cannot be encoded as UTF-8.
    """
    text = bytes(raw)
    if strings or (b"e" not in text and b"E" not in text) or _EXTREME.search(text) is None:
        return decoder.decode(text)
    try:
        values = json.loads(text)
        orjson.loads(text)  # refuses numbers above the limits, which the standard library reads as infinite
    except ValueError:
        raise msgspec.DecodeError("Number out of range") from None
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from None
    return msgspec.convert(values, decoder.type)


def without_words(text: Buffer) -> bytes | None:
    """Rewrites JSON with the words NaN, Infinity and -Infinity as JSON without them: NaN as null, and the
    infinities as strings. Returns None if no such word occurs outside strings.
    """
    # By default, the text may be up to 64 MiB long. The interpreter cannot switch threads during a search or
    # a copy, so searching or copying the whole text at once would block the event loop for too long.
    if not contains(text, _WORDS):
        return None
    pieces: list[bytes] = []
    left, left_inside = b"", np.empty(0, np.bool_)
    for part, _, inside in parts(text):
        whole, masks = left + part.tobytes(), np.concatenate((left_inside, inside))
        cut = max(0, len(whole) - _CUT_OFF)
        for word in _WORD.finditer(whole, max(0, cut - _CUT_OFF)):
            if word.start() < cut < word.end():
                cut = word.start()
        pieces.append(_rewritten(whole[:cut], masks[:cut]))
        left, left_inside = whole[cut:], masks[cut:]
    pieces.append(_rewritten(left, left_inside))
    return b"".join(pieces) if sum(map(len, pieces)) > len(text) else None  # each word has become longer


def _rewritten(text: bytes, inside: np.ndarray) -> bytes:
    """Rewrites the words in a piece of JSON. `inside` masks the bytes within strings."""
    if any(byte in text for byte in _HIDDEN):
        return text  # The text is not UTF-8, so the decoder refuses it.
    letters = np.frombuffer(text, np.uint8)
    # The initials of words within strings are replaced, so that only the other words are found.
    text = np.where(inside, _HIDE[letters], letters).tobytes()
    text = text.replace(b"Infinity", b'"Infinity"').replace(b'-"Infinity"', b'"-Infinity"')
    return text.replace(b"NaN", b"null").translate(_SHOW)


def json_text(text: str) -> str | msgspec.Raw:
    """Returns a text as a value for the JSON encoder.

    The encoder takes up to 100 ns for a character. So a long text is encoded here, in pieces between which
    other threads can run.
    """
    if len(text) <= LARGE:
        return text
    pieces = (_encode(text[start : start + LARGE])[1:-1] for start in range(0, len(text), LARGE))
    return msgspec.Raw(b'"%b"' % b"".join(pieces))


def read_texts(tensor: Tensor) -> list[str]:
    """Returns the elements of a BYTES tensor. Raises InvalidArgument for elements that are not UTF-8."""
    try:
        return [
            element.decode() if isinstance(element, bytes) else str(element)
            for element in tensor.data.reshape(-1).tolist()
        ]
    except UnicodeDecodeError:
        raise InvalidArgument(
            f"output '{tensor.name}' has elements that are not UTF-8, which JSON cannot represent."
            " Please use the binary data format (parameter 'binary_data': true)"
        ) from None


def encode_data(tensor: Tensor) -> list[Any] | msgspec.Raw:
    """Returns the elements of a tensor: for BYTES, a list of strings as `json_text` returns them; for other
    datatypes, the JSON text of a flat list.

    Raises InvalidArgument for values that JSON cannot represent.
    """
    if tensor.datatype is DataType.BYTES:
        return [json_text(text) for text in read_texts(tensor)]
    return msgspec.Raw(encode_numbers(tensor))


def encode_numbers(tensor: Tensor) -> bytes:
    """Returns the elements of a tensor of numbers or booleans as the JSON text of a flat list.

    Raises InvalidArgument for datatypes that JSON cannot represent.
    """
    if tensor.datatype in _BINARY_ONLY:
        raise InvalidArgument(
            f"sending {tensor.datatype.name} data via JSON is not supported. Please use the binary data"
            f" format for output {tensor.name}"
        )
    data = tensor.data
    text = write_numbers(data)
    if _N not in text or data.dtype.kind != "f":  # no number has become null
        return text
    flat = data.reshape(-1)
    pieces = (
        _encode_words(flat[start : start + PIECE].tolist())[1:-1] for start in range(0, flat.size, PIECE)
    )
    return b"[" + b",".join(pieces) + b"]"


def _encode_words(values: list[Any]) -> bytes:
    """Encodes a list as JSON in which NaN and infinite numbers are words."""
    return json.dumps(values, separators=(",", ":")).encode()


def _decode_pieces(spec: InputPlan, raw: bytes, depth: int, *, encoded: bool) -> np.ndarray:
    """Decodes the elements of a large list piece by piece, to save memory. Nested lists must contain no
    blanks.

    With `encoded`, no element may be a plain string, because blanks in the string could have been lost.
    """
    array = np.empty(spec.count, spec.dtype)
    end = 0
    for piece, piece_depth in _pieces(raw, depth):
        stop_if_abandoned()
        numbers = read_numbers(spec.datatype, piece)
        if numbers is not None:
            start, end = end, end + len(numbers)
            if end > spec.count:
                break
            array[start:end] = numbers
            continue
        try:
            values = decode_list(
                _decoder(_Encoded if encoded else _ELEMENTS[spec.datatype], piece_depth),
                piece,
                strings=encoded,
            )
        except msgspec.DecodeError as error:
            reason = _reason(error).partition(" - at ")[0]
            raise InvalidArgument(
                f"{_begin(spec.datatype, reason)}: input '{spec.name}': {reason}, near element {end}"
            ) from None
        for _ in range(piece_depth - 1):
            values = list(chain.from_iterable(values))
        start, end = end, end + len(values)
        if end > spec.count:
            break
        array[start:end] = _array(spec, values)
    _compare_count(spec, end)
    return array


def _decode_strings(spec: InputPlan, raw: bytes) -> np.ndarray:
    """Decodes the elements of a large list of strings piece by piece."""
    found = 0
    for _, quotes, _ in parts(raw):
        found += int(np.count_nonzero(quotes))
        if found // 2 > spec.count:
            raise wrong_count(spec.name, spec.count, found // 2, " (the rest was not counted)")
    _compare_count(spec, found // 2)
    array = np.empty(spec.count, np.object_)
    end = 0
    left = b""
    for part, quotes, inside in parts(raw, LARGE):
        outside = ~inside & ~quotes
        if np.count_nonzero(outside & ~_BETWEEN[part]):
            raise InvalidArgument(f"{_NO_STRING}: input '{spec.name}': Expected `str`, near element {end}")
        kept = ~outside | (part == ord(","))
        closed = np.flatnonzero(quotes & ~inside)
        cut = int(np.count_nonzero(kept[: closed[-1] + 1])) if len(closed) else 0
        flat = left + part[kept].tobytes()
        whole, left = flat[: len(left) + cut] if cut else b"", flat[len(left) + cut if cut else 0 :]
        try:
            values = _decoder(str, 1).decode(b"[" + whole.strip(b",") + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            reason = str(error).partition(" - at ")[0]
            raise InvalidArgument(
                f"{_begin(spec.datatype, reason)}: input '{spec.name}': {reason}, near element {end}"
            ) from None
        start, end = end, end + len(values)
        array[start:end] = _array(spec, values)
    return array


def _without_blanks(raw: bytes) -> bytes:
    return b"".join(raw[start : start + STEP].translate(None, _BLANK) for start in range(0, len(raw), STEP))


def _has_more(raw: bytes, characters: bytes) -> bool:
    """Returns whether `raw` contains any byte that is not in `characters`. Searches in short pieces, because
    most texts contain such a byte near the start.
    """
    return any(raw[start : start + 4096].translate(None, characters) for start in range(0, len(raw), 4096))


def _pieces(raw: bytes, depth: int) -> Iterator[tuple[bytes, int]]:
    """Cuts lists nested `depth` deep into lists of about LARGE characters. Yields each with its own depth."""
    inner = raw[1:-1]
    between = b"]" * (depth - 1) + b"," + b"[" * (depth - 1)
    start = 0
    while start < len(inner):
        cut = inner.rfind(between, start, start + LARGE)
        if cut < 0:
            cut = inner.find(between, start + LARGE - len(between) + 1)
        end = len(inner) if cut < 0 else cut + depth - 1
        if end - start > 2 * LARGE and depth > 1:  # nowhere to cut: this is one element, itself a list
            yield from _pieces(inner[start:end], depth - 1)
        else:
            yield b"[" + inner[start:end] + b"]", depth
        start = end + 1


def _first_element(raw: bytes) -> int:
    """Returns the first byte of `raw` that is neither "[" nor blank, which tells a string from an object.

    Returns 0 if the first 64 * MAX_DEPTH bytes contain no such byte.
    """
    return next((character for character in raw[: 64 * MAX_DEPTH] if character not in b"[" + _BLANK), 0)


def _depth(raw: bytes, name: str) -> int:
    depth = 0
    for character in raw[: 64 * MAX_DEPTH]:
        if character == 0x5B:
            depth += 1
        elif character not in _BLANK:
            break
    if depth > MAX_DEPTH:
        raise InvalidArgument(f"'data' of input '{name}' is nested more than {MAX_DEPTH} levels deep")
    return depth


def _compare_count(spec: InputPlan, got: int, text: str = _OTHER_SHAPE) -> None:
    if got == spec.count:
        return
    if spec.datatype is DataType.BYTES:
        raise wrong_count(spec.name, spec.count, got)
    raise InvalidArgument(
        f"{text}: input '{spec.name}' has the shape {list(spec.shape)}, {spec.count} elements, but got {got}"
    )


def _reason(error: Exception) -> str:
    """Returns why a decoder has rejected a list; for a string that is no number, as for any other value."""
    reason = str(error)
    if reason.startswith(_NO_WORD):
        place = reason.rpartition(" - at ")[2]
        return f"Expected `float`, got `str` - at {place} (of strings, only {_SPELLED} are numbers)"
    return reason.replace("`float | str | null`", "`float`")


def _begin(datatype: DataType, reason: str) -> str:
    """Returns the start of the error for data that a decoder rejects: Triton's own text if Triton rejects
    such data too.
    """
    if "got `" not in reason:  # a number out of range, which Triton accepts
        return "Unable to parse 'data'"
    if datatype is DataType.BYTES:
        return _NO_STRING
    kind, read_as = _READ_AS[datatype.dtype.kind]
    return f"Unable to parse 'data': attempt to access JSON non-{kind} as {read_as}"


def _array(spec: InputPlan, values: list[Any]) -> np.ndarray:
    if spec.datatype is DataType.BYTES:
        elements = np.empty(len(values), np.object_)
        elements[:] = [value.encode() if isinstance(value, str) else value.b64 for value in values]
        return elements
    try:
        with np.errstate(over="ignore"):
            array = np.array(values, spec.dtype)  # reads null as NaN, and the words
        infinite = np.isinf(array) if spec.datatype is DataType.FP32 else None
        if infinite is None or not infinite.any() or np.isinf(np.array(values, np.float64)[infinite]).all():
            return array  # no finite number has overflowed
    except OverflowError:
        pass
    raise InvalidArgument(f"'data' of input '{spec.name}' has a number that {spec.datatype.name} cannot hold")


@decodable
class _Encoded(msgspec.Struct, forbid_unknown_fields=True):
    """Bytes in base64, as {"b64": "..."}."""

    b64: bytes


@lru_cache(maxsize=256)
def _decoder(element: Any, depth: int) -> msgspec.json.Decoder[Any]:
    """Returns a decoder for lists of elements of a type, nested `depth` deep."""
    for _ in range(depth):
        element = list[element]
    return msgspec.json.Decoder(element)


def _integer(datatype: DataType) -> Any:
    limits = np.iinfo(datatype.dtype)
    # msgspec accepts no limits above INT64; numpy refuses numbers above UINT64.
    return Annotated[
        int, msgspec.Meta(ge=int(limits.min), le=int(limits.max) if limits.max < 2**63 else None)
    ]


_FLOAT: Any = float | None | Literal["NaN", "Infinity", "-Infinity"]
_ELEMENTS: dict[DataType, Any] = {
    DataType.BOOL: bool,
    DataType.BYTES: str,
    DataType.FP32: _FLOAT,
    DataType.FP64: _FLOAT,
} | {
    datatype: _integer(datatype)
    for datatype in DataType
    if datatype.dtype.kind in "iu" and datatype is not DataType.BF16
}
