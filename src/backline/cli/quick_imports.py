"""Imports the modules of a command in less time: with fewer system calls, and numpy without the parts that a
server never uses (docs/decisions/a-quick-start.md).
"""

from __future__ import annotations

import os
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source
from marshal import loads
from types import CodeType, ModuleType
from typing import Any, Final

#: The packages whose modules QuickFinder finds. No module in them has both a source file and an extension
#: module, which Python's own finder would prefer.
_PACKAGES: Final = frozenset({"asyncio", "backline", "httptools", "msgspec", "numpy"})
#: The text before and after a module's name in the path of its compiled file: "__pycache__/" and, for
#: example, ".cpython-311.pyc".
_FOLDER, _ENDING = cache_from_source("?.py").split("?")
#: Modules that numpy and msgspec import but a server never uses, and the names that the importing modules
#: need from them. The first two only add docstrings to functions that are written in C; the others are for
#: type hints.
_UNUSED: Final[Mapping[str, Mapping[str, object]]] = {
    "numpy._core._add_newdocs": {},
    "numpy._core._add_newdocs_scalars": {},
    "numpy._typing": {"NDArray": list},
    "typing_extensions": {
        "get_type_hints": typing.get_type_hints,
        "NotRequired": typing.NotRequired,
        "Required": typing.Required,
    },
}


@contextmanager
def quick_imports() -> Iterator[None]:
    """Makes imports in the `with` block faster."""
    finder = QuickFinder()
    quick = os.name == "posix" and sys.pycache_prefix is None and PathFinder in sys.meta_path
    if quick:
        sys.meta_path.insert(sys.meta_path.index(PathFinder), finder)
    try:
        with _one_blas_thread(), _without_unused():
            yield
    finally:
        if quick:
            sys.meta_path.remove(finder)


class QuickFinder:
    """Finds modules and subpackages whose compiled files are up to date.

    Python's own finders and loaders find these modules too, with the same result, but take twice the time for
    each of 350 modules. They also find everything that this finder leaves to them, such as modules that have
    to be compiled.
    """

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not path or name.partition(".")[0] not in _PACKAGES:
            return None
        last = name.rpartition(".")[2]
        found = _find(name, path[0], last)
        if found is None and (found := _find(name, f"{path[0]}/{last}", "__init__")) is not None:
            found.submodule_search_locations = [f"{path[0]}/{last}"]
        return found


def _find(name: str, folder: str, file: str) -> ModuleSpec | None:
    """Returns the spec of the module `name` in the file `file`.py in `folder`; None if the file has no
    compiled file that is up to date.
    """
    source = f"{folder}/{file}.py"
    cached = f"{folder}/{_FOLDER}{file}{_ENDING}"
    try:
        written = os.stat(source)
        compiled = os.open(cached, os.O_RDONLY)
        try:
            content = os.read(compiled, os.fstat(compiled).st_size)
        finally:
            os.close(compiled)
    except OSError:
        return None
    # PEP 552: the magic number, flags (0: compare the source's time and size), the time, the size
    current = (
        MAGIC_NUMBER
        + b"\0\0\0\0"
        + (int(written.st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
        + (written.st_size & 0xFFFFFFFF).to_bytes(4, "little")
    )
    if not content.startswith(current):
        return None
    spec = ModuleSpec(name, _Loader(name, source, content), origin=source)
    spec.has_location = True
    spec.cached = cached
    return spec


class _Loader(SourceFileLoader):
    """Loads a module from the content of its compiled file."""

    def __init__(self, name: str, path: str, content: bytes) -> None:
        super().__init__(name, path)
        self._content: bytes | None = content

    def get_code(self, fullname: str) -> CodeType | None:
        content, self._content = self._content, None
        if content is None:  # a reload: the file may have changed
            return super().get_code(fullname)
        return loads(memoryview(content)[16:])  # type: ignore[no-any-return]


class _StandIn(ModuleType):
    """A stand-in for a module. The module itself is imported when an attribute is needed that the stand-in
    lacks.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


@contextmanager
def _without_unused() -> Iterator[None]:
    """Replaces the modules in _UNUSED with stand-ins during the `with` block. A module is imported only if
    code needs an attribute of it that its stand-in lacks.
    """
    stand_ins = {name: _StandIn(name) for name in _UNUSED if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        vars(stand_in).update(_UNUSED[name])
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Keeps numpy from starting threads for linear algebra when numpy is imported in the `with` block. Has no
    effect if the environment already sets the number of threads.

    Nothing in this process uses these threads. OpenBLAS would start one thread per core, and each thread
    would spin for a while before it sleeps. On two cores, this takes a tenth of the CPU time of a start, and
    more on machines with more cores. The environment variable that limits the threads is removed afterwards,
    because worker processes would inherit it.
    """
    if any(name in os.environ for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")):
        yield
        return
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OPENBLAS_NUM_THREADS", None)
