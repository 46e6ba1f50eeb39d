"""Chooses the form of a response by the Accept field: JSON with all outputs, or one output as an array,
image, sound or text. Encodes single outputs, and reads .npy files.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO

import numpy as np

from backline.dialects.bodies.bodies import BODIES
from backline.dialects.bodies.values import widened
from backline.engine.numbers import parse_whole
from backline_client.values.datatypes import DataType
from backline_client.values.errors import InvalidArgument, NotAcceptable
from backline_client.values.tensor import Tensor

JSON, EVENTS = "application/json", "text/event-stream"
NPY, PNG, WAV, TEXT, BINARY = (
    "application/x-npy",
    "image/png",
    "audio/wav",
    "text/plain",
    "application/octet-stream",
)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The parameters of the Accept header that select the output and, for audio, its sample rate.
OUTPUT, RATE = "output", "rate"
_MAX_ACCEPT = 1024
#: The maximum total padding, in bytes, of the elements of a BYTES tensor in a .npy file.
MAX_PADDING = 16 << 20


@dataclass(frozen=True, slots=True)
class Form:
    """A media type and its parameters, as given by the client."""

    kind: str = JSON
    parameters: Mapping[str, str] = field(default_factory=dict)


def accepted(field: bytes) -> Form:
    """Returns the form that an Accept field prefers (RFC 9110, section 12.5.1); JSON if it has no preference.

    Raises NotAcceptable if no form is acceptable.
    """
    if not field or field == b"*/*":
        return Form()
    best: tuple[float, Form] | None = None
    for entry in field[:_MAX_ACCEPT].decode("latin-1").split(","):
        kind, *given = (part.strip() for part in entry.split(";"))
        parameters = {
            name.strip().lower(): value.strip().strip('"')
            for name, _, value in (part.partition("=") for part in given)
        }
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            quality = 0.0
        match = next((form for form in FORMS if _matches(kind.lower(), form)), None)
        if match is not None and quality > 0 and (best is None or quality > best[0]):
            best = quality, Form(match, parameters)
    if best is None:
        raise NotAcceptable(
            f"Accept '{field[:100].decode('latin-1')}' matches none of the types that a response can have:"
            f" {', '.join(FORMS)}"
        )
    return best[1]


def _matches(wanted: str, form: str) -> bool:
    wanted = {"audio/x-wav": WAV, "audio/wave": WAV, "application/npy": NPY}.get(wanted, wanted)
    return wanted in ("*/*", form) or (wanted.endswith("/*") and form.startswith(wanted[:-1]))


def read_npy(name: str, body: bytes) -> np.ndarray:
    """Returns the array in a .npy file, as a view.

    Raises InvalidArgument for a malformed file, and for a file with Python objects.
    """
    stream = BytesIO(body[:65536])
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, columns, dtype = read(stream)
    except Exception as error:  # the header is a Python literal, for which numpy raises errors of many types
        raise _malformed(name, error) from None
    if not dtype.itemsize:  # Security: an array of any length would fit into a file without data.
        raise InvalidArgument(
            f"the .npy file for input '{name}' holds elements of 0 bytes; save numbers or bytes"
        )
    if dtype.hasobject or dtype.names or dtype.subdtype:
        raise InvalidArgument(
            f"the .npy file for input '{name}' holds Python objects or records; save numbers or bytes"
        )
    count = 1
    for dimension in shape:
        count *= dimension
    data = memoryview(body)[stream.tell() :]
    if min(shape, default=0) < 0 or count * dtype.itemsize != len(data):
        raise InvalidArgument(
            f"the .npy file for input '{name}' has {len(data)} bytes of data, which do not fit its shape"
            f" {list(shape)} of {dtype}"
        )
    array = np.frombuffer(data, dtype, count) if count else np.empty(0, dtype)
    try:
        return array.reshape(shape, order="F" if columns else "C")
    except (ValueError, TypeError) as error:
        raise _malformed(name, error) from None


def _malformed(name: str, error: Exception) -> InvalidArgument:
    return InvalidArgument(f"the .npy file for input '{name}' is malformed: {error}")


def write_npy(tensor: Tensor, _: Form) -> bytes:
    data = tensor.data
    if tensor.datatype is DataType.BYTES:
        data = _padded(tensor) if data.size else data.astype("S1")
    elif tensor.datatype is DataType.BF16:
        data = widened(data)
    stream = BytesIO()
    np.lib.format.write_array(stream, np.asarray(data), allow_pickle=False)
    return stream.getvalue()


def _padded(tensor: Tensor) -> np.ndarray:
    """Returns the elements of a BYTES tensor, all padded to the length of the longest.

    Security: raises NotAcceptable for too much padding. A single long element among many short ones would
    make the file many times as large as the tensor.
    """
    sizes = [len(element) for element in tensor.data.reshape(-1).tolist()]
    if len(sizes) * max(sizes) - sum(sizes) > MAX_PADDING:
        raise _cannot(
            tensor,
            NPY,
            f"each element would be padded to {max(sizes)} bytes, the size of the longest; ask for JSON",
        )
    return tensor.data.astype("S")


def write_png(tensor: Tensor, _: Form) -> bytes:
    """Encodes UINT8 in shape [height, width] or [height, width, 1, 3 or 4 channels] as PNG (ISO 15948).

    A BYTES tensor must already contain a complete PNG file. Raises NotAcceptable for any other tensor.
    """
    if tensor.datatype is DataType.BYTES:
        element = _only(tensor)
        if not element.startswith(_PNG_SIGNATURE):
            raise _cannot(tensor, PNG, "its bytes are not a PNG file")
        return element
    data = _without_batch(tensor, 3)
    if data.ndim == 2:
        data = data[:, :, None]
    colour = {1: 0, 3: 2, 4: 6}.get(data.shape[2]) if data.ndim == 3 else None
    if tensor.datatype is not DataType.UINT8 or colour is None or not data.size:
        raise _cannot(
            tensor, PNG, "it must be UINT8, [height, width] or [height, width, 1, 3 or 4], and not empty"
        )
    height, width, channels = data.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # each row begins with its filter type, 0
    rows[:, 1:] = data.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 6)), (b"IEND", b""))
    return _PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def write_wav(tensor: Tensor, form: Form) -> bytes:
    """Encodes samples, INT16 or FP32 in shape [frames] or [frames, up to 8 channels], as WAV.

    A BYTES tensor must already contain a complete WAV file. Raises NotAcceptable for any other tensor, and if
    the Accept field has no valid `rate`, the sample rate in Hz.
    """
    if tensor.datatype is DataType.BYTES:
        element = _only(tensor)
        if not (element.startswith(b"RIFF") and element[8:12] == b"WAVE"):
            raise _cannot(tensor, WAV, "its bytes are not a WAV file")
        return element
    data = _without_batch(tensor, 2)
    kinds = {DataType.INT16: (1, 2), DataType.FP32: (3, 4)}
    if tensor.datatype not in kinds or data.ndim not in (1, 2) or (data.ndim == 2 and data.shape[1] > 8):
        raise _cannot(
            tensor,
            WAV,
            "audio must be INT16 or FP32 of shape [frames] or [frames, 1 to 8 channels]",
        )
    rate = parse_whole(form.parameters.get(RATE, ""), 1, 768_000)
    if rate is None:
        raise NotAcceptable(
            "audio needs a sample rate: send Accept: audio/wav; rate=44100, with the rate of the model's"
            " output"
        )
    code, width = kinds[tensor.datatype]
    channels = data.shape[1] if data.ndim == 2 else 1
    samples = np.ascontiguousarray(data).tobytes()
    block = channels * width
    description = struct.pack("<HHIIHH", code, channels, rate, rate * block, block, width * 8)
    chunks = b"fmt " + struct.pack("<I", 16) + description + b"data" + struct.pack("<I", len(samples))
    return b"RIFF" + struct.pack("<I", 4 + len(chunks) + len(samples)) + b"WAVE" + chunks + samples


def write_text(tensor: Tensor, _: Form) -> bytes:
    if tensor.datatype is not DataType.BYTES:
        raise _cannot(tensor, TEXT, "text must be BYTES")
    return b"\n".join(_element(element) for element in tensor.data.reshape(-1).tolist())


def write_binary(tensor: Tensor, _: Form) -> bytes:
    """Returns the only element of a BYTES tensor, or the numbers of any other tensor in row-major
    little-endian order. Raises NotAcceptable unless a BYTES tensor has exactly one element.
    """
    if tensor.datatype is DataType.BYTES:
        return _only(tensor)
    return np.ascontiguousarray(tensor.data).tobytes()


#: The functions that write the forms of a response that contain only one output.
WRITERS: Mapping[str, Callable[[Tensor, Form], bytes]] = {
    NPY: write_npy,
    PNG: write_png,
    WAV: write_wav,
    TEXT: write_text,
    BINARY: write_binary,
}
#: All forms of a response, in order of preference. JSON, events and bodies contain all outputs.
FORMS = (JSON, EVENTS, *WRITERS, *BODIES)


def choose_output(outputs: list[Tensor], form: Form) -> Tensor:
    """Returns the output to send, for a form that contains only one output.

    Raises NotAcceptable if there are several outputs and the client named none, and InvalidArgument for an
    unknown name.
    """
    names = [tensor.name for tensor in outputs]
    wanted = form.parameters.get(OUTPUT)
    if wanted is not None:
        if wanted not in names:
            raise InvalidArgument(
                f"Accept asks for output '{wanted[:64]}', expected one of {', '.join(names)}"
            )
        return outputs[names.index(wanted)]
    if len(outputs) != 1:
        raise NotAcceptable(
            f"a response of type {form.kind} contains only one output, but the model has {len(outputs)};"
            f" choose one: Accept: {form.kind}; output={names[0] if names else 'NAME'}"
        )
    return outputs[0]


def _without_batch(tensor: Tensor, rank: int) -> np.ndarray:
    """Returns the data without leading dimensions of 1. An image (`rank` 3) always keeps its last three
    dimensions; audio (`rank` 2) always keeps only the last, so [1, frames] becomes [frames].
    """
    data = tensor.data
    while data.ndim > 1 and data.shape[0] == 1 and (data.ndim > rank or rank == 2):
        data = data[0]
    return data


def _only(tensor: Tensor) -> bytes:
    if tensor.data.size != 1:
        raise NotAcceptable(
            f"output '{tensor.name}' has {tensor.data.size} elements, but a response of this type holds only"
            " one: ask for another type with Accept, such as application/json"
        )
    return _element(tensor.data.reshape(-1)[0])


def _element(element: object) -> bytes:
    return element if isinstance(element, bytes) else str(element).encode()


def _cannot(tensor: Tensor, kind: str, why: str) -> NotAcceptable:
    shape = list(tensor.shape)
    return NotAcceptable(
        f"output '{tensor.name}', {tensor.datatype.name}{shape}, cannot be sent as {kind}: {why}"
    )
