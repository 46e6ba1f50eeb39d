"""Decodes images and sounds in a process of their own. A file can make a decoder run for minutes, take all
memory, or crash; the process ends such a decoder without the worker, and with it the model, noticing.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import struct
import subprocess
import sys
import warnings
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from time import monotonic
from typing import Any, Final

import msgspec
import numpy as np

import backline_client
from backline.model.audio import AudioHint
from backline.model.hints import Media
from backline.model.image import ImageHint
from backline_client.values.decodable import decodable
from backline_client.values.errors import Internal, InvalidArgument

#: The seconds that decoding one file may take, unless the model says otherwise.
DECODE_TIMEOUT: Final = 10.0
#: The bytes of memory that a decoder may take in addition to the limit: the libraries' tables and buffers.
_OVERHEAD: Final = 64 << 20
#: The seconds until a process that was started has imported the libraries.
_START_TIMEOUT: Final = 120.0
_START: Final = (str(Path(__file__).with_name("start.py")), str(Path(backline_client.__file__).parent))
#: A message begins with the sizes of its two parts: a header in MessagePack, and bytes.
_SIZES: Final = struct.Struct("<QQ")
#: The libraries, by the kind of a file. They are imported before the memory is limited.
_LIBRARIES: Final = {"image": ("PIL.Image",), "audio": ("soundfile", "soxr", "av")}
_HINTS: Final = {"image": ImageHint, "audio": AudioHint}

#: The types of the facts about an image that the model gets with it.
_PLAIN: Final = (str, bytes, int, float, bool)


@decodable
class _Order(msgspec.Struct):
    """Asks for the decoding of a file. `hint` has the fields of the type hint."""

    kind: str
    hint: dict[str, Any]
    limit: int


@decodable
class _Answer(msgspec.Struct):
    """Describes a decoded array, or a Pillow image if it has a `mode`; or says in `error` why there is
    none.
    """

    error: str = ""
    shape: tuple[int, ...] = ()
    dtype: str = ""
    mode: str = ""
    palette: tuple[str, bytes] | None = None
    info: dict[str, Any] = {}


class Decoder:
    """The worker's side: the process that decodes the files of one worker, one after another."""

    def __init__(self, timeout: float = DECODE_TIMEOUT) -> None:
        self.timeout = timeout
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket
        self._ready = False

    def start(self) -> None:
        """Starts the process without waiting for it, unless it runs."""
        if self._process is not None:
            return
        self._channel, end = socket.socketpair()
        with end:
            self._process = subprocess.Popen(
                [sys.executable, *_START, str(end.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[end.fileno()],
                # One thread decodes, and NumPy's others would only take memory.
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        self._ready = False

    def close(self) -> None:
        """Ends the process, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._channel.close()
            self._process = None

    def decode(self, hint: Media, data: bytes, limit: int) -> Any:
        """Decodes a file as `hint.decode` does. Raises InvalidArgument also if that takes more time than
        allowed, takes more memory than `limit`, or crashes.
        """
        what = f"the {hint.kind} of {len(data)} bytes"
        try:
            self._await_start()
            order = _Order(hint.kind, asdict(hint), limit)  # type: ignore[call-overload]  # it is a dataclass
            end = monotonic() + self.timeout
            _send(self._channel, order, data, end)
            answer, content = _receive(self._channel, _Answer, end)
        except TimeoutError:
            self._restart()
            raise InvalidArgument(
                f"{what} is not decoded after {self.timeout:g} s: send a smaller or simpler file, or raise"
                " the model's decode_timeout_seconds"
            ) from None
        except (OSError, EOFError):
            status = self._restart()
            raise InvalidArgument(
                f"{what} cannot be decoded: the decoder crashed (exit status {status}). The file is damaged"
            ) from None
        if answer.error:
            raise InvalidArgument(answer.error)
        if answer.mode:
            return _image(answer, content)
        return np.frombuffer(content, answer.dtype).reshape(answer.shape)

    def _await_start(self) -> None:
        self.start()
        if self._ready:
            return
        try:
            _receive(self._channel, _Answer, monotonic() + _START_TIMEOUT)
        except (OSError, EOFError) as error:
            self.close()
            raise Internal(f"the process that decodes files does not start: {error}") from None
        self._ready = True

    def _restart(self) -> int | None:
        """Replaces the process by a new one, and returns how the old one had ended."""
        assert self._process is not None, "it was started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.1)  # a process that crashes closes the channel before it ends
        status = self._process.poll()
        self.close()
        self.start()
        return status


def _image(answer: _Answer, content: bytearray) -> Any:
    image = import_module("PIL.Image").frombytes(answer.mode, answer.shape, bytes(content))
    if answer.palette is not None:
        rawmode, palette = answer.palette
        image.putpalette(palette, rawmode)
    image.info = answer.info
    return image


def _send(channel: socket.socket, header: msgspec.Struct, content: Any, end: float | None = None) -> None:
    encoded = msgspec.msgpack.encode(header)
    for part in (_SIZES.pack(len(encoded), memoryview(content).nbytes) + encoded, content):
        channel.settimeout(_left(end))
        channel.sendall(part)


def _receive(channel: socket.socket, kind: type[Any], end: float | None = None) -> tuple[Any, bytearray]:
    header, content = _SIZES.unpack(_exactly(channel, _SIZES.size, end))
    return msgspec.msgpack.decode(_exactly(channel, header, end), type=kind), _exactly(channel, content, end)


def _exactly(channel: socket.socket, size: int, end: float | None) -> bytearray:
    content = bytearray(size)
    view = memoryview(content)
    while view:
        channel.settimeout(_left(end))
        got = channel.recv_into(view)
        if not got:
            raise EOFError("its connection ended")
        view = view[got:]
    return content


def _left(end: float | None) -> float | None:
    """Returns the seconds until `end`; None for no limit. Raises TimeoutError if none are left."""
    if end is None:
        return None
    if (left := end - monotonic()) <= 0:
        raise TimeoutError
    return left


# The decoding process


def main(descriptor: int) -> None:
    """Decodes files until the worker ends."""
    channel = socket.socket(fileno=descriptor)
    warnings.simplefilter("ignore")  # a file could fill the server's log with thousands of Pillow's warnings
    for library in sum(_LIBRARIES.values(), ()):
        with contextlib.suppress(ImportError):
            import_module(library)
    _send(channel, _Answer(), b"")
    while True:
        try:
            order, data = _receive(channel, _Order)
        except (EOFError, OSError):
            return
        answer, content = _decoded(order, bytes(data))
        del data
        _send(channel, answer, content)
        del answer, content


def _decoded(order: _Order, data: bytes) -> tuple[_Answer, Any]:
    hint = _HINTS[order.kind](**order.hint)
    try:
        with _memory(order.limit + _OVERHEAD):
            value = hint.decode(data, order.limit)
            if isinstance(value, np.ndarray):
                return _Answer(shape=value.shape, dtype=value.dtype.str), value.reshape(-1).view(np.uint8)
            palette = None
            if value.palette is not None:
                rawmode = "RGBA" if value.palette.mode == "RGBA" else "RGB"
                palette = (rawmode, bytes(value.getpalette(rawmode)))
            info = {str(name): item for name, item in value.info.items() if type(item) in _PLAIN}
            return _Answer("", value.size, "", value.mode, palette, info), value.tobytes()
    except InvalidArgument as error:
        return _Answer(error.message), b""
    except MemoryError:
        why = (
            f"the {order.kind} of {len(data)} bytes takes more than {order.limit} bytes of memory to decode:"
            " send a smaller file, or raise the model's decoded_limit_bytes"
        )
        return _Answer(why), b""
    except Exception as error:  # the libraries raise errors of many types for damaged files
        return _Answer(f"the {order.kind} cannot be decoded: {error or type(error).__name__}"), b""


@contextlib.contextmanager
def _memory(size: int) -> Any:
    """Limits the memory that this process may take in addition to what it has. Only on Linux."""
    if sys.platform != "linux":
        yield
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + size
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
