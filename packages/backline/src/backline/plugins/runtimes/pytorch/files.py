"""Recognises and checks the files that PyTorch writes, without executing anything in a file."""

from __future__ import annotations

import ast
import json
import re
import zlib
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

from backline.backends.runtime import read_start
from backline.system.archive_limits import UnpackLimits, check_zip
from backline_client.values.errors import InvalidArgument

_EXPORT = "torch.export.save(torch.export.export(model, example_inputs), 'model.pt2')"
#: Prefixes of files that torch.export.load would unpickle (torch/export/pt2_archive/constants.py).
_PICKLED_CONSTANTS = ("data/constants/custom_obj_", "data/constants/opaque_obj_")

#: Exceptions that reading a member of a damaged archive can raise.
_BROKEN: Final = (
    BadZipFile,
    OSError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    zlib.error,
)


class PytorchKind(Enum):
    """The kind of model in a file."""

    TORCH_SCRIPT = "TorchScript"
    EXPORTED = "a torch.export program"
    COMPILED = "an AOTInductor package"


def identify(path: Path) -> PytorchKind:
    """Returns the kind of model in a file.

    Raises InvalidArgument, which says what to do, for a checkpoint (weights without a network), a damaged
    archive, an exported program that contains pickled objects, and a file that PyTorch did not write.
    """
    start = read_start(path)
    if start[:1] == b"\x80":  # the format of torch.save before PyTorch 1.6: a bare pickle
        raise _checkpoint(path)
    if start[:2] != b"PK":
        raise InvalidArgument(
            f"'{path}' is not a PyTorch file: neither a zip archive nor a checkpoint. Export the network:"
            f" {_EXPORT}"
        )
    check_zip(path, UnpackLimits())
    try:
        with ZipFile(path) as archive:
            # Removes the top folder, which is named after the file to which the model was first saved.
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (BadZipFile, OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"'{path}' is a broken archive ({error}); was it copied completely?") from None
    if any(name.startswith("data/aotinductor/") for name in names):
        return PytorchKind.COMPILED
    if any(name.startswith("models/") for name in names) or "serialized_exported_program.json" in names:
        unsafe = [name for name in names if name.startswith(_PICKLED_CONSTANTS)]
        if unsafe:
            raise InvalidArgument(
                f"'{path}' holds objects that can be restored only by executing a pickle ({unsafe[0]});"
                " export the network without custom objects"
            )
        return PytorchKind.EXPORTED
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return PytorchKind.TORCH_SCRIPT
    if "data.pkl" in names:
        raise _checkpoint(path)
    raise InvalidArgument(
        f"'{path}' is a zip archive, but not a model written by PyTorch. Export the network: {_EXPORT}"
    )


def compiled_for(path: Path) -> str:
    """Returns the type of device that an AOTInductor package is compiled for ("cpu"); "" if unknown."""
    with ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_metadata.json") and "/data/aotinductor/" in name:
                return str(json.loads(archive.read(name)).get("AOTI_DEVICE_KEY", ""))
    return ""


def _checkpoint(path: Path) -> InvalidArgument:
    return InvalidArgument(
        f"'{path}' is a checkpoint, not a model: it was written by torch.save and holds weights, or a"
        f" pickle of Python objects, which is never executed. Export the network with its weights: {_EXPORT}"
    )


#: The `aten::` operations that take a file name, chosen from torch._C._jit_get_all_schemas().
_FORBIDDEN: Final = frozenset({"from_file", "save"})
#: The maximum size of the source code in one archive, in bytes. The largest networks have far less.
_MOST_SOURCE: Final = 64 << 20
#: Tokens as in PyTorch's lexer (torch/csrc/jit/frontend/lexer.cpp): strings, comments, names, other tokens.
_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""' r"|'''(?:[^\\]|\\.)*?'''" r'|"(?:[^"\\\n]|\\.)*"' r"|'(?:[^'\\\n]|\\.)*'"
    r"|#[^\n]*|[A-Za-z_][A-Za-z0-9_]*|\S",
    re.DOTALL,
)  # fmt: skip


#: Kinds of nodes that may loop: loops, and calls of interface methods, which graphs do not show inlined.
_MAY_LOOP: Final = frozenset({"prim::Loop", "prim::CallMethod"})
#: Names in source code that show that code runs while the source is loaded, or that the graphs do not show
#: all calls.
_OPAQUE: Final = frozenset(
    {"__setstate__", "__forward_hooks__", "__forward_pre_hooks__", "Interface", "ModuleInterface"}
)


def check_source(path: Path) -> bool:
    """Raises InvalidArgument if TorchScript source may call a forbidden operation.

    Call this before loading, because loading already runs code (`__setstate__`). Any call must contain the
    operation's name (`torch.save`, a method, an alias) or have the name as a string (`getattr`), so the
    source is searched for both. If loading runs no code, attributes and methods with such a name that the
    source itself declares are allowed. Returns whether there are such attributes or methods; if so, call
    `check_graphs` to distinguish them from the operations.

    Also raises InvalidArgument for an archive that is damaged, ambiguous, or in the format of PyTorch before
    1.0, or whose source is too large.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                # PyTorch might run one of the two members while this function checks the other.
                raise InvalidArgument(f"'{path}' holds two files of the same name; save the script again")
            if any(name.lower().endswith("/model.json") for name in names):
                raise InvalidArgument(f"'{path}' has the format of PyTorch before 1.0; save the script again")
            # PyTorch ignores case when it looks up members.
            source = [member for member in members if member.filename.lower().endswith(".py")]
            if sum(member.file_size for member in source) > _MOST_SOURCE:
                raise InvalidArgument(
                    f"'{path}' holds more than {_MOST_SOURCE >> 20} MiB of source code, the maximum"
                )
            tokens = [_tokens(archive.read(member).decode("latin-1")) for member in source]
            opaque = any(token in _OPAQUE for part in tokens for token in part)
            declared = (
                frozenset() if opaque else frozenset(name for part in tokens for name in _declared(part))
            )
            for part in tokens:
                for name in _named(part, declared):
                    raise _forbidden(path, name)
            return bool(declared)
    except _BROKEN as error:
        raise InvalidArgument(f"'{path}' is a broken archive ({error}); was it copied completely?") from None


def check_graphs(path: Path, module: Any, *, inlined: bool) -> None:
    """Raises InvalidArgument if a graph of a loaded module calls a forbidden operation.

    The graphs show how PyTorch has parsed the source, in case `check_source` has parsed it differently.
    `inlined` graphs also show what functions and methods of other classes call.
    """
    for part in module.modules():
        for name in part._c._method_names():
            method = part._c._get_method(name)
            for kind in _kinds(method.inlined_graph if inlined else method.graph):
                if kind.removeprefix("aten::") in _FORBIDDEN:
                    raise _forbidden(path, kind.removeprefix("aten::"))


def has_loop(module: Any) -> bool:
    """Returns whether a run of a loaded module may execute a loop, even in hooks and interfaces."""
    hooks = (*module._c._get_forward_pre_hooks(), *module._c._get_forward_hooks())
    graphs = (module.inlined_graph, *(hook.inlined_graph for hook in hooks))
    return any(kind in _MAY_LOOP for graph in graphs for kind in _kinds(graph))


def _tokens(text: str) -> list[str]:
    """Returns the tokens of a source file, without comments."""
    return [match[0] for match in _TOKEN.finditer(text) if match[0][0] != "#"]


def _declared(tokens: list[str]) -> Iterator[str]:
    """Yields the forbidden names that a source file declares as methods or attributes."""
    for before, token, after in zip(["", *tokens], tokens, [*tokens[1:], ""], strict=False):
        if token in _FORBIDDEN and (before == "def" or (before != "." and after == ":")):
            yield token


def _named(tokens: list[str], declared: frozenset[str]) -> Iterator[str]:
    """Yields the forbidden operations that a source file names, except names that may refer to methods or
    attributes in `declared`.
    """
    by_text = "getattr" in tokens
    before, receiver, literal = "", "", ""
    for token in tokens:
        if token[0] in "\"'":  # adjacent strings are concatenated
            literal += _value(token)
            continue
        if by_text and literal in _FORBIDDEN:
            yield literal
        if token in _FORBIDDEN and before != "def":  # defining a method of that name is harmless
            # An operation always follows a dot: after `torch`, after `ops.aten` or as a method of a tensor.
            own = token in declared and (before != "." or receiver not in ("torch", "aten"))
            if not own:
                yield token
        before, receiver, literal = token, before, ""


def _value(token: str) -> str:
    try:
        return str(ast.literal_eval(token))
    except (SyntaxError, ValueError):
        return token


def _kinds(graph: Any) -> Iterator[str]:
    for node in graph.nodes():
        yield node.kind()
        for block in node.blocks():
            yield from _kinds(block)
        for name in node.attributeNames():
            if node.kindOf(name) == "g":
                yield from _kinds(node.g(name))


def _forbidden(path: Path, operation: str) -> InvalidArgument:
    return InvalidArgument(
        f"'{path}' names torch.{operation}, which reads or writes files and is not served: remove it from the"
        " script and save it again"
    )
