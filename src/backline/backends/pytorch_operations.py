"""Operations of TorchScript that read or write files: no script that names one is loaded.

A script runs already while it is loaded (`__setstate__`), so its source is searched first, before PyTorch sees the file. The graphs are
searched afterwards as well: they say what PyTorch made of the source, whatever the search took it for.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

from backline.engine.errors import InvalidArgument

#: Of `aten::`. All that torch._C._jit_get_all_schemas() has with a file's name among its arguments.
_FORBIDDEN: Final = frozenset({"from_file", "save"})
#: Bytes of source in one file; that of the largest networks is far smaller.
_MOST_SOURCE: Final = 64 << 20
#: As PyTorch's lexer has them (torch/csrc/jit/frontend/lexer.cpp): strings without prefixes, comments, names, anything else.
_TOKEN: Final = re.compile(
    r'"""(?:[^\\]|\\.)*?"""' r"|'''(?:[^\\]|\\.)*?'''" r'|"(?:[^"\\\n]|\\.)*"' r"|'(?:[^'\\\n]|\\.)*'"
    r"|#[^\n]*|[A-Za-z_][A-Za-z0-9_]*|\S",
    re.DOTALL,
)  # fmt: skip


def check_source(path: Path) -> None:
    """Raises InvalidArgument for an archive whose TorchScript source names a forbidden operation, in whatever spelling.

    A tensor's method, an alias and `torch.save` all need the name; `getattr` needs it as a string.
    """
    try:
        with ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            if len(set(names)) != len(names):
                # PyTorch and this module could each read another one of them.
                raise InvalidArgument(f"'{path}' holds two members of one name; save the script again")
            if any(name.lower().endswith("/model.json") for name in names):
                raise InvalidArgument(
                    f"'{path}' is of a form that PyTorch wrote before 1.0; save the script again"
                )
            # PyTorch finds members whatever their case.
            source = [member for member in members if member.filename.lower().endswith(".py")]
            if sum(member.file_size for member in source) > _MOST_SOURCE:
                raise InvalidArgument(f"'{path}' holds more than {_MOST_SOURCE >> 20} MiB of source")
            for member in source:
                for name in _named(archive.read(member).decode("latin-1")):
                    raise _forbidden(path, name)
    except (BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidArgument(f"'{path}' is a broken archive ({error}); was it copied completely?") from None


def check_graphs(path: Path, module: Any) -> None:
    """Raises InvalidArgument where a graph of a loaded module calls a forbidden operation."""
    for part in module.modules():
        for name in part._c._method_names():
            for kind in _kinds(part._c._get_method(name).graph):
                if kind.removeprefix("aten::") in _FORBIDDEN:
                    raise _forbidden(path, kind.removeprefix("aten::"))


def _named(text: str) -> Iterator[str]:
    """The forbidden operations that a source names."""
    by_text = "getattr" in text
    before, literal = "", ""
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token[0] in "\"'":  # adjacent strings are one
            literal += _value(token)
            continue
        if token[0] == "#":
            continue
        if by_text and literal in _FORBIDDEN:
            yield literal
        if token in _FORBIDDEN and before != "def":  # a definition calls nothing
            yield token
        before, literal = token, ""


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
        f"'{path}' names torch.{operation}, which reads or writes files and is not served: take it out of the script and save that again;"
        " a method or attribute of that name must be renamed"
    )
