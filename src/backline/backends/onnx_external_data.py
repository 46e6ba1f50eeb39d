"""Checks that a file is an ONNX model, and that its external data (weights) is in the file's own folder.

Recent versions of ONNX Runtime check this too, but older ones do not resolve links. The file is parsed by its
protobuf wire format (onnx.proto), skipping the weights. Loops are found on the way.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias

from backline.backends.runtime import read_start
from backline.engine.errors import InvalidArgument

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
_Bytes: TypeAlias = bytes | mmap.mmap


def check_graph(path: Path) -> bool:
    """Returns whether the model has a loop, however deep; reads only the structure.

    Raises InvalidArgument if a tensor's data is outside the file's folder.
    """
    locations: set[str] = set()
    loops = False
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for message, field, start, stop in _parts(content):
                if message == "Node":
                    loops = loops or (field == _OP_TYPE and content[start:stop] == b"Loop")
                elif _PATHS[message].get(field) == "Entry":
                    entry = {number: content[a:b] for number, a, b in _fields(content, start, stop)}
                    if entry.get(_KEY) == b"location":
                        locations.add(entry.get(_VALUE, b"").decode("utf-8", "surrogateescape"))
    except (IndexError, ValueError):
        return True  # not valid protobuf, which the runtime will report
    for location in locations:
        _check(path, path.resolve().parent, location)
    return loops


def check_structure(path: Path) -> None:
    """Raises InvalidArgument for a file that is not an ONNX model or is cut off.

    Reads only the fields at the top level.
    """
    read_start(path)
    fields: set[int] = set()
    whole = True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begins_well = content[0] == _BEGIN
        try:
            fields.update(number for number, _, _ in _fields(content, 0, len(content)))
        except (IndexError, ValueError):
            whole = False
    refused = f"'{path}' cannot be loaded by ONNX Runtime"
    if begins_well and not whole:
        raise InvalidArgument(f"{refused}: it is cut off; was it copied completely?")
    if not whole or _GRAPH not in fields:
        raise InvalidArgument(f"{refused}: it is not an ONNX model, whatever its name says")


def _check(path: Path, folder: Path, location: str) -> None:
    pure = PurePosixPath(location)
    # "*/_ORT_MEM_ADDR_/*" is ONNX Runtime's internal marker for a memory address: never valid in a file.
    outside = pure.is_absolute() or ".." in pure.parts or "\\" in location or location.startswith("*/")
    if outside or not _resolved(folder / location).is_relative_to(folder):
        raise InvalidArgument(
            f"'{path}' takes weights from '{location}', which is outside of its folder; save it with external"
            " data in the model's folder"
        )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a symbolic link loop
        return Path("/")


def _parts(content: _Bytes) -> Iterator[tuple[str, int, int, int]]:
    """The length-delimited fields of all messages that can contain tensors or nodes.

    Yields the type of the message, and the number, start and end of the field.
    """
    todo = [("Model", 0, len(content), 0)]
    while todo:
        message, at, end, depth = todo.pop()
        paths = _PATHS[message]
        for field, start, stop in _fields(content, at, end):
            yield message, field, start, stop
            inner = paths.get(field)
            if inner not in (None, "Entry") and depth < _DEEPEST:
                todo.append((inner, start, stop, depth + 1))


def _fields(content: _Bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yields the number, start and end of each length-delimited field.

    Raises ValueError or IndexError if the content is malformed.
    """
    while at < end:
        tag, at = _varint(content, at)
        kind = tag & 7
        if kind == 0:
            _, at = _varint(content, at)
        elif kind == 1:
            at += 8
        elif kind == 5:
            at += 4
        elif kind == 2:
            size, at = _varint(content, at)
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
