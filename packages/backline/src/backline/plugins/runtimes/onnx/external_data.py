"""Checks that a file is an ONNX model, and that its external data (weights) are in the file's own folder.

Recent versions of ONNX Runtime check this too, but older ones do not resolve symbolic links. The file is read
as protobuf's wire format (onnx.proto), without the weights. The same pass finds loops.

Files are read, not mapped: if another program shortened a mapped file, the next access to the missing part
would kill the server with SIGBUS.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias, overload

import numpy as np
from msgspec import Struct

from backline.backends.runtime import MOST_READ, read_start
from backline_client.values.errors import InvalidArgument

#: For each message type, the fields that can contain tensors, and the message type of each field.
_PATHS: Final[dict[str, dict[int, str]]] = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "Sparse"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "Sparse", 23: "Sparse"},
    "Sparse": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_KEY, _VALUE = 1, 2
_OP_TYPE = 4
_GRAPH: Final = 7
#: The first byte of a model: the protobuf tag of field 1, the version of the format.
_BEGIN: Final = 0x08
_DEEPEST: Final = 100
#: Files up to this size, in bytes, are read in one step.
_READ_WHOLE: Final = 16 << 20
#: The number of bytes that are read at once from a larger file.
_BLOCK: Final = 1 << 16


class _Blocks:
    """The content of a large file, which is read in blocks, as needed."""

    def __init__(self, file: FileIO, size: int) -> None:
        self._file = file
        self._size = size
        self._start = 0
        self._block = b""

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, at: int) -> int: ...

    @overload
    def __getitem__(self, at: slice) -> bytes: ...

    def __getitem__(self, at: int | slice) -> int | bytes:
        """Raises IndexError for an index beyond the end of the file, which may have become shorter."""
        if isinstance(at, slice):
            return os.pread(self._file.fileno(), at.stop - at.start, at.start)
        place = at - self._start
        if not 0 <= place < len(self._block):
            # The file is also read backwards, so the block does not begin at the byte `at` itself.
            self._start = at - at % _BLOCK
            self._block = os.pread(self._file.fileno(), _BLOCK, self._start)
            place = at - self._start
        return self._block[place]


_Bytes: TypeAlias = bytes | _Blocks


class ModelFile(Struct, frozen=True):
    """The properties of a model file that `check_model` reads from its structure.

    `loops` says whether the model has a loop, however deeply nested. `external` has the files with external
    data, as paths below the folder of the model. `size` is the number of bytes of the file and its external
    data, most of which are weights.
    """

    loops: bool
    size: int
    external: frozenset[str] = frozenset()


def check_model(path: Path) -> ModelFile:
    """Reads the structure of a file, without the weights.

    Raises InvalidArgument as `check_structure` does, and if a tensor's data is outside the file's folder.
    """
    locations: set[str] = set()
    loops = False
    with _opened(path) as content:
        _check_top_level(path, content)
        size = len(content)
        todo = [("Model", 0, size, 0)]
        try:
            while todo:
                message, at, end, depth = todo.pop()
                inner = _PATHS[message]
                for field, start, stop in _fields(content, at, end):
                    kind = inner.get(field)
                    if kind == "Entry":
                        entry = {number: content[a:b] for number, a, b in _fields(content, start, stop)}
                        if entry.get(_KEY) == b"location":
                            locations.add(entry.get(_VALUE, b"").decode("utf-8", "surrogateescape"))
                    elif kind is not None and depth < _DEEPEST:
                        todo.append((kind, start, stop, depth + 1))
                    elif message == "Node" and field == _OP_TYPE and content[start:stop] == b"Loop":
                        loops = True
        except (IndexError, ValueError):
            return ModelFile(loops=True, size=size)  # not valid protobuf, which the runtime will report
    for location in locations:
        size += _check(path, path.resolve().parent, location)
    return ModelFile(loops, size, frozenset(locations))


def check_structure(path: Path) -> None:
    """Raises InvalidArgument for a file that is not an ONNX model or is truncated.

    Reads only the fields at the top level.
    """
    with _opened(path) as content:
        _check_top_level(path, content)


def read_external_data(options: Any, path: Path, external: Collection[str]) -> list[np.ndarray]:
    """Reads the external data of a model, if the data are not too large, and adds them to a session's
    options. Returns the data, which must be kept until the session has been created: the session copies what
    it needs.

    ONNX Runtime maps files that are not read here, for as long as the session exists: a file that is
    overwritten in place would change the weights of a model that is being served, and a file that is
    shortened would make the kernel kill the server with SIGBUS. Nothing is read, and the files are mapped, if
    the data exceed MOST_READ, if a file is missing or has an unprintable name, or with ONNX Runtime before
    1.29. The weights of subgraphs, such as the branches of an If, are mapped in any case.
    """
    add = getattr(options, "add_external_initializers_from_files_in_memory", None)
    names = sorted(external)
    paths = [path.parent / name for name in names]
    if add is None or not names or not "".join(names).isprintable() or not all(map(Path.is_file, paths)):
        return []  # if a file is missing, the runtime will report it
    if sum(one.stat().st_size for one in paths) > MOST_READ:
        return []
    files = [np.fromfile(one, np.uint8) for one in paths]
    add(names, files, [file.nbytes for file in files])
    return files


@contextmanager
def _opened(path: Path) -> Iterator[_Bytes]:
    """Provides the content of a file. Raises InvalidArgument for a file that cannot be a model."""
    start = read_start(path, _BLOCK)
    if len(start) < _BLOCK:
        yield start  # the whole file; opening it only once matters for thousands of small models
        return
    with open(path, "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        yield file.read() if size <= _READ_WHOLE else _Blocks(file, size)


def _check_top_level(path: Path, content: _Bytes) -> None:
    fields: set[int] = set()
    whole = True
    begins_well = content[0] == _BEGIN
    try:
        fields.update(number for number, _, _ in _fields(content, 0, len(content)))
    except (IndexError, ValueError):
        whole = False
    refused = f"'{path}' cannot be loaded by ONNX Runtime"
    if begins_well and not whole:
        raise InvalidArgument(f"{refused}: it is truncated; was it copied completely?")
    if not whole or _GRAPH not in fields:
        raise InvalidArgument(
            f"{refused}: it is not an ONNX model, whatever its name says; export the model to ONNX"
        )


def _check(path: Path, folder: Path, location: str) -> int:
    """Returns the size of a file with external data; 0 if there is none, which the runtime will report.

    Raises InvalidArgument if the file is outside `folder`.
    """
    pure = PurePosixPath(location)
    # "*/_ORT_MEM_ADDR_/*" is ONNX Runtime's internal marker for a memory address: never valid in a file.
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in location or location.startswith("*/")
    file = _resolved(folder / location)
    if outside or not file.is_relative_to(folder):
        raise InvalidArgument(
            f"'{path}' takes weights from '{location}', which is outside of its folder; save it with external"
            " data in the model's folder"
        )
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a symbolic link loop
        return Path("/")


def _fields(content: _Bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number, start and end of each length-delimited field.

    Raises ValueError or IndexError if the content is malformed.
    """
    while at < end:
        tag = content[at]
        at += 1
        if tag >= 0x80:
            tag, at = _varint(content, at - 1)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size = content[at]
            at += 1
            if size >= 0x80:
                size, at = _varint(content, at - 1)
            if size > end - at:
                raise ValueError
            yield tag >> 3, at, at + size
            at += size
        else:
            raise ValueError


def _varint(content: _Bytes, at: int) -> tuple[int, int]:
    value = content[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    for shift in range(7, 70, 7):
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError
