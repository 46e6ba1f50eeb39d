"""Imports the modules of a command in less time: with fewer system calls, and numpy without the parts that a
server never uses (docs/decisions/a-quick-start.md).
"""

from __future__ import annotations

import gc
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.util import MAGIC_NUMBER, cache_from_source
from marshal import loads
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Final

#: The packages whose modules QuickFinder finds. No module in them has both a source file and an extension
#: module, which Python's own finder would prefer.
_PACKAGES: Final = frozenset(
    {"asyncio", "backline", "click", "concurrent", "httptools", "json", "msgspec", "numpy", "urllib"}
)
#: The text before and after a module's name in the path of its compiled file: "__pycache__/" and, for
#: example, ".cpython-311.pyc".
_FOLDER, _ENDING = cache_from_source("?.py").split("?")


def _later(module: str, name: str) -> Callable[..., Any]:
    """Returns a function that imports `module` when it is called, and calls the module's function `name`."""

    def call(*arguments: Any, **named: Any) -> Any:
        return getattr(import_module(module), name)(*arguments, **named)

    return call


def _without_indentation(text: str) -> str:
    """Does what inspect.cleandoc does."""
    first, *others = text.expandtabs().split("\n")
    indent = min((len(line) - len(line.lstrip()) for line in others if line.strip()), default=0)
    return "\n".join([first.lstrip(), *(line[indent:] for line in others)]).strip("\n")


def _is_coroutine_function(function: Any) -> bool:
    """Does what inspect.iscoroutinefunction does, but imports inspect only for rare kinds of callables."""
    inner = function
    while isinstance(inner, (MethodType, partial)):
        inner = inner.__func__ if isinstance(inner, MethodType) else inner.func
    if type(inner) is BuiltinFunctionType:
        return False
    if type(inner) is FunctionType and not vars(inner):
        return bool(inner.__code__.co_flags & _CO_COROUTINE)
    return import_module("inspect").iscoroutinefunction(function)  # type: ignore[no-any-return]


def _unwrapped(function: Any, *, stop: Callable[[Any], bool] | None = None) -> Any:
    """Does what inspect.unwrap does."""
    return (
        import_module("inspect").unwrap(function, stop=stop) if hasattr(function, "__wrapped__") else function
    )


#: The flag of the code of a coroutine function (inspect.CO_COROUTINE).
_CO_COROUTINE: Final = 0x80
#: Modules that the imported modules import, but that a server seldom or never uses, and the names that the
#: importing modules need at once. The two that add docstrings to numpy's functions are never imported.
_UNUSED: Final[Mapping[str, Mapping[str, object]]] = {
    "ast": {},
    "asyncio.sslproto": {},
    "gettext": {"gettext": str, "ngettext": lambda one, many, n: one if n == 1 else many},
    "inspect": {
        "cleandoc": _without_indentation,
        "iscoroutinefunction": _is_coroutine_function,
        "isfunction": lambda it: isinstance(it, FunctionType),
        "unwrap": _unwrapped,
    },
    "ipaddress": {},
    "msgspec._json_schema": {
        name: _later("msgspec._json_schema", name) for name in ("schema", "schema_components")
    },
    "msgspec.inspect": {},
    "msgspec.toml": {},
    "msgspec.yaml": {},
    "numpy._core._add_newdocs": {},
    "numpy._core._add_newdocs_scalars": {},
    "numpy._typing": {"NDArray": list},
    "numpy.linalg": {
        name: _later("numpy.linalg", name) for name in ("eigvals", "inv", "lstsq", "matrix_power")
    },
    "pickle": {},
    "ssl": {},
    "subprocess": {"PIPE": -1, "STDOUT": -2, "DEVNULL": -3},
    "textwrap": {},
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
    collected = gc.isenabled()
    quick = os.name == "posix" and sys.pycache_prefix is None and PathFinder in sys.meta_path
    if quick:
        sys.meta_path.insert(0, finder)  # the other finders have none of its modules
    gc.disable()  # modules are never freed
    try:
        with _one_blas_thread(), _stand_ins(_UNUSED), _late_patterns(), _late_annotations():
            yield
    finally:
        if collected:
            gc.freeze()  # otherwise, the next collection would visit all that the imports created
            gc.enable()
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

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if module.__name__ == "numpy._core.overrides":
            _skip_checks(module)


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
def _stand_ins(modules: Mapping[str, Mapping[str, object]]) -> Iterator[None]:
    """Replaces modules that are not imported yet with stand-ins during the `with` block. `modules` has the
    attributes of each stand-in. A module is imported only if code needs an attribute of it that its stand-in
    lacks.
    """
    stand_ins = {name: _StandIn(name) for name in modules if name not in sys.modules}
    for name, stand_in in stand_ins.items():
        vars(stand_in).update(modules[name])
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _LatePattern:
    """A regular expression that is compiled when it is first used. It passes for a `re.Pattern`."""

    def __init__(self, *pattern: Any) -> None:
        self._pattern = pattern

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return re.Pattern

    def __getattr__(self, name: str) -> Any:
        found = getattr(_compile(*self._pattern), name)
        vars(self)[name] = found  # the next use finds it without this method
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _compile, self._pattern


_compile: Final = re.compile


def _compile_later(pattern: Any, flags: int = 0) -> Any:
    """Does what re.compile does, except that mistakes in the pattern are found when it is first used."""
    return _LatePattern(pattern, flags)


@contextmanager
def _late_patterns() -> Iterator[None]:
    """Makes modules that are imported in the `with` block compile their regular expressions late, because a
    server uses few of them, and compiling one takes 0.1 ms.
    """
    re.compile = _compile_later
    try:
        yield
    finally:
        re.compile = _compile


@contextmanager
def _late_annotations() -> Iterator[None]:
    """Makes modules that are imported in the `with` block compile annotations that are strings when these are
    evaluated, because few of them are. The first compile() of a process also creates 119 classes, for `ast`.
    """
    vars(typing)["compile"] = lambda source, *_: source
    try:
        yield
    finally:
        vars(typing).pop("compile", None)


def _skip_checks(overrides: Any) -> None:
    """Makes the module numpy._core.overrides define numpy's functions without checking that the arguments of
    a function are those of its dispatcher, and without the signatures of functions that are written in C.
    """
    overrides.verify_matching_signatures = lambda implementation, dispatcher: None
    overrides.inspect = _StandIn("inspect")
    vars(overrides.inspect).update(_UNUSED["inspect"], signature=lambda dispatcher: None)


def import_uvloop() -> ModuleType:
    """Imports uvloop, which takes names from ssl and subprocess, without importing these two modules.

    Raises ImportError if uvloop is not installed.
    """
    late: dict[str, dict[str, object]] = {
        "inspect": {**_UNUSED["inspect"], "isgenerator": _later("inspect", "isgenerator")},
        "subprocess": {
            **_UNUSED["subprocess"],
            "SubprocessError": _later("subprocess", "SubprocessError"),  # uvloop only creates and raises it
        },
    }
    with suppress(ImportError):  # Python may have been built without TLS
        import _ssl

        # The module ssl has these names from _ssl. uvloop passes SSLContext to isinstance() only.
        late["ssl"] = {name: value for name, value in vars(_ssl).items() if name.startswith("SSL")}
        late["ssl"] |= {
            "SSLContext": _ssl._SSLContext,
            "MemoryBIO": _ssl.MemoryBIO,
            "CertificateError": _ssl.SSLCertVerificationError,
            "create_default_context": _later("ssl", "create_default_context"),
        }
    with _stand_ins(late), quick_imports():
        return import_module("uvloop")


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
