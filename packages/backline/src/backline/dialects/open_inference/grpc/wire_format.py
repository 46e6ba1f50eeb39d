"""Reads and writes the outermost layer of inference messages in protobuf's wire format
(https://protobuf.dev/programming-guides/encoding/).

Tensors are by far the largest part of a message and the only part that differs from request to request, yet
the protobuf runtime copies them two or three times. So the fields that carry tensors are located and written
here, and the runtime handles the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from backline.dialects.json_scan import STEP
from backline_client.values.errors import InvalidArgument, PayloadTooLarge
from backline_client.values.tensor import Buffer

#: Tags of length-delimited fields: number << 3 | 2.
_MODEL_NAME = 1 << 3 | 2
_REQUEST_ID = 3 << 3 | 2
_RAW_INPUT = 7 << 3 | 2
_INPUT = 5 << 3 | 2
_OUTPUT = 6 << 3 | 2
#: Tags within an input, and within its contents.
_SHAPE = 3 << 3 | 2
_CONTENTS = 5 << 3 | 2
#: The tags of packed numbers, within contents, that are encoded as varints: all but fp32_contents and
#: fp64_contents.
_VARINTS = frozenset(number << 3 | 2 for number in range(1, 6))
#: Tags within a load request: its parameters, their name and value, and the bytes in a value.
_LOAD_PARAMETER = 3 << 3 | 2
_KEY = 1 << 3 | 2
_VALUE = 2 << 3 | 2
_BYTES = 4 << 3 | 2
#: The prefix of the names of parameters with files, and the maximum length of such a name in bytes.
_FILE = "file:"
_LONGEST_NAME = 4096
_RESPONSE_ID = b"\x1a"
_RAW_OUTPUT = b"\x32"
_LENGTH_DELIMITED = 2
#: The maximum length of a varint in bytes.
_LONGEST_VARINT = 10

#: The maximum number of fields in a request, at all levels: inputs, outputs, raw contents, parameters and
#: their parts.
MAX_FIELDS = 8_192
#: The maximum number of top-level fields in a request that are unknown to the protocol or unusually encoded.
#: They are skipped byte by byte, and only clients of a later version of the protocol send any.
MAX_UNKNOWN_FIELDS = 64
#: The maximum number of fields in typed contents: each element of datatype BYTES is a field, and so is each
#: number that is not packed.
MAX_STRINGS = 262_144
#: The maximum number of packed numbers in typed contents that are encoded as varints. The parser takes 25 ns
#: for each.
MAX_VARINTS = 1 << 22

MALFORMED = "the message is not an inference.ModelInferRequest: it is malformed or cut short"


def split_request(message: Buffer) -> tuple[bytes, str, list[tuple[int, int]]]:
    """Separates the id and the raw_input_contents of a ModelInferRequest from the rest.

    Returns three values: the rest, itself a valid ModelInferRequest; the id; and the start and end of each
    raw content. Raises InvalidArgument if the outermost layer is malformed, and PayloadTooLarge for more than
    MAX_FIELDS fields or MAX_UNKNOWN_FIELDS unknown fields.
    """
    position = 0
    total = len(message)
    id = ""
    places: list[tuple[int, int]] = []
    rest: list[Buffer] = []
    if total > 2 * MAX_FIELDS:  # a field has at least two bytes
        _check_count(message, total)
    run = 0  # where the bytes that are not yet in `rest` start
    unknown = 0
    try:
        while position < total:
            start = position
            tag = message[position]
            length = message[position + 1]
            if tag & 7 != _LENGTH_DELIMITED or tag > 127:
                unknown += 1
                if unknown > MAX_UNKNOWN_FIELDS:
                    raise _too_many_unknown()
                position = _skip(message, position)
                continue
            position += 2
            if length > 127:
                length, position = read_varint(message, position - 1)
            end = position + length
            if tag == _RAW_INPUT:
                places.append((position, end))
            elif tag == _REQUEST_ID:
                id = str(message[position:end], "utf-8")
            else:
                position = end
                continue
            if run < start:
                rest.append(message[run:start])
            run = position = end
    except IndexError:
        raise InvalidArgument(MALFORMED) from None
    except UnicodeDecodeError:
        raise InvalidArgument("the id of the request is not UTF-8") from None
    if position != total:
        raise InvalidArgument(MALFORMED)
    if run < total:
        rest.append(message[run:total])
    return bytes(rest[0]) if len(rest) == 1 else b"".join(rest), id, places


def _check_count(message: Buffer, total: int) -> None:
    """Raises PayloadTooLarge for a message of more than MAX_FIELDS fields, malformed or not."""
    position = unknown = 0
    try:
        for _ in range(MAX_FIELDS):
            if position >= total or unknown > MAX_UNKNOWN_FIELDS:
                return  # split_request refuses too many unknown fields
            tag, length = message[position], message[position + 1]
            if tag < 128 and tag & 7 == _LENGTH_DELIMITED:
                position += 2
                if length > 127:
                    length, position = read_varint(message, position - 1)
                position += length
            else:
                unknown += 1
                position = _skip(message, position)
    except (IndexError, InvalidArgument):
        return
    if position < total:
        raise _too_many_fields()


def split_load(message: Buffer) -> tuple[Buffer, dict[str, Buffer]]:
    """Separates the files of a RepositoryModelLoadRequest, which may be large, from the rest.

    Returns the rest, itself a valid RepositoryModelLoadRequest, and the contents of the files by the names of
    their parameters. A parameter with an unusual or malformed encoding remains in the rest, which the runtime
    checks. Raises PayloadTooLarge for more than MAX_FIELDS fields.
    """
    files: dict[str, Buffer] = {}
    rest: list[Buffer] = []
    run = before = 0  # where the bytes that are not yet in `rest` start, and where the current field starts
    for number, (tag, start, end) in enumerate(_fields(message, 0, len(message))):
        if number == MAX_FIELDS:
            raise _too_many_fields()
        found = _file(message, start, end) if tag == _LOAD_PARAMETER else None
        if found is not None:
            name, content = found
            files[name] = content
            rest.append(message[run:before])
            run = end
        before = end
    if not files:
        return message, files
    rest.append(message[run : len(message)])
    return b"".join(rest), files


def _file(message: Buffer, start: int, end: int) -> tuple[str, Buffer] | None:
    """Returns the name and the bytes of a load parameter that is a file; None for any other parameter."""
    try:
        key, key_end = _content(message, start, _KEY)
        value, value_end = _content(message, key_end, _VALUE)
        data, data_end = _content(message, value, _BYTES)
        name = str(message[key : min(key_end, key + _LONGEST_NAME)], "utf-8")
    except (IndexError, InvalidArgument, UnicodeDecodeError):
        return None
    if not value_end == data_end == end or key_end - key > _LONGEST_NAME or not name.startswith(_FILE):
        return None
    return name, memoryview(message)[data:end]


def _content(message: Buffer, position: int, tag: int) -> tuple[int, int]:
    """Returns the start and end of the content of the field at `position`.

    Raises InvalidArgument if the field has another tag or is malformed, and IndexError if the message ends in
    its tag or length.
    """
    found, position = read_varint(message, position)
    if found != tag:
        raise InvalidArgument(MALFORMED)
    length, position = read_varint(message, position)
    return position, position + length


def check_fields(message: bytes) -> None:
    """Raises PayloadTooLarge for more than MAX_FIELDS fields in total, or in typed contents for more than
    MAX_STRINGS fields (strings, and numbers that are not packed) or more than MAX_VARINTS packed numbers.

    Call this function before parsing, because the parser holds the interpreter's lock until it is done. The
    parser reports malformed messages.
    """
    fields, strings, numbers = MAX_FIELDS, MAX_STRINGS, MAX_VARINTS
    for tag, start, end in _fields(message, 0, len(message)):
        fields -= 1
        if tag not in (_INPUT, _OUTPUT):
            continue
        for inner, begin, stop in _fields(message, start, end):
            fields -= count_varints(message, begin, stop) if inner == _SHAPE else 1
            if fields < 0:
                raise _too_many_fields()
            if tag != _INPUT or inner != _CONTENTS:
                continue
            for element, first, last in _fields(message, begin, stop):
                strings -= 1
                if element in _VARINTS:
                    numbers -= count_varints(message, first, last)
                if strings < 0 or numbers < 0:
                    raise PayloadTooLarge(
                        f"the request has more than {MAX_STRINGS} elements in bytes_contents or numbers that"
                        f" are not packed, or more than {MAX_VARINTS} numbers in contents other than"
                        " fp32_contents and fp64_contents. Use raw_input_contents instead"
                    )


def count_varints(message: bytes, start: int, end: int) -> int:
    """Returns the number of varints in `message[start:end]`; the last byte of each is below 128."""
    view = np.frombuffer(message, np.int8)
    return sum(int(np.count_nonzero(view[at : min(at + STEP, end)] >= 0)) for at in range(start, end, STEP))


def _fields(message: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the tag of each field from `position` to `end`, with the start and end of its content."""
    try:
        while position < end:
            tag, start = read_varint(message, position)
            if tag & 7 == _LENGTH_DELIMITED:
                length, start = read_varint(message, start)
                position = start + length
            else:
                position = _skip(message, position)
            yield tag, start, min(position, end)
    except (IndexError, InvalidArgument):
        return


def whole_fields(message: Buffer, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the tag of each field from `position` to `end`, with the start and end of its content.

    Raises InvalidArgument if the last field ends elsewhere, or a field is malformed.
    """
    try:
        while position < end:
            tag, start = read_varint(message, position)
            if tag & 7 == _LENGTH_DELIMITED:
                length, start = read_varint(message, start)
                position = start + length
            else:
                position = _skip(message, position)
            if position > end:
                raise InvalidArgument("a field of the message is cut short")
            yield tag, start, position
    except IndexError:
        raise InvalidArgument("a field of the message is cut short") from None


def string_field(message: Buffer, number: int) -> str:
    """Returns the text of a field of a message, without parsing the rest; empty if the field is missing.

    Fields after the first MAX_FIELDS are ignored.
    """
    text = b""
    for tag, start, end in islice(_fields(message, 0, len(message)), MAX_FIELDS):
        if tag == number << 3 | _LENGTH_DELIMITED:
            text = bytes(message[start:end])
    return text.decode(errors="replace")


def model_name(message: Buffer) -> str:
    """Returns the name of the model in a ModelInferRequest, without parsing the rest; empty if there is no
    name. `split_request` refuses messages with more than MAX_FIELDS fields.
    """
    return string_field(message, 1)


def first_model_name(beginning: Buffer) -> str | None:
    """Returns the model's name in the first bytes of a ModelInferRequest, or None if the name comes later.

    Clients write the fields in the order of their numbers, so the name usually comes first. Raises
    PayloadTooLarge, as `split_request` would, if these bytes already have more than MAX_UNKNOWN_FIELDS
    unknown fields.
    """
    unknown = 0
    for tag, start, end in _fields(beginning, 0, len(beginning)):
        if tag == _MODEL_NAME:
            return bytes(beginning[start:end]).decode(errors="replace")
        unknown += tag > 127 or tag & 7 != _LENGTH_DELIMITED
        if unknown > MAX_UNKNOWN_FIELDS:
            raise _too_many_unknown()
    return None


def _too_many_unknown() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request has more than {MAX_UNKNOWN_FIELDS} fields that do not belong to"
        " inference.ModelInferRequest; leave them out"
    )


def _too_many_fields() -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request has more than {MAX_FIELDS} fields: inputs, outputs, parameters and dimensions together"
    )


def response_parts(head: bytes, id: str, outputs: Iterable[Buffer]) -> list[Buffer]:
    """Makes a ModelInferResponse from its `head` (all but id and raw_output_contents), its id and the
    contents.

    The message is the concatenation of the parts.
    """
    parts: list[Buffer] = [head]
    if id:
        text = id.encode()
        parts += (_RESPONSE_ID, length_prefix(len(text)), text)
    for output in outputs:
        parts += (_RAW_OUTPUT, length_prefix(len(output)), output)
    return parts


def length_prefix(length: int) -> bytes:
    """Encodes a length as a protobuf varint."""
    if length < 128:
        return _SHORT[length]
    digits = bytearray()
    while length > 127:
        digits.append(length & 127 | 128)
        length >>= 7
    digits.append(length)
    return bytes(digits)


_SHORT = [bytes((length,)) for length in range(128)]


def read_varint(message: Buffer, position: int) -> tuple[int, int]:
    """Returns the varint at `position`, and where it ends. Raises IndexError if the message ends in it, and
    InvalidArgument if it is too long.
    """
    value = 0
    for shift in range(0, 7 * _LONGEST_VARINT, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise InvalidArgument(MALFORMED)


def _skip(message: Buffer, position: int) -> int:
    """Returns the end of a field that is unknown or unusually encoded. The runtime validates the field."""
    tag = message[position]
    if tag > 127:
        tag, position = read_varint(message, position)
    else:
        position += 1
    kind = tag & 7
    if kind == 0:
        end = position + _LONGEST_VARINT
        while message[position] > 127:
            position += 1
            if position == end:
                raise InvalidArgument(MALFORMED)
        return position + 1
    if kind == 1:
        return position + 8
    if kind == _LENGTH_DELIMITED:
        if tag in (_REQUEST_ID, _RAW_INPUT):  # an overlong tag, which no encoder writes
            raise InvalidArgument(MALFORMED)
        length, position = read_varint(message, position)
        return position + length
    if kind == 5:
        return position + 4
    raise InvalidArgument(MALFORMED)
