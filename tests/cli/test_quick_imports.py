"""Modules that are imported quickly are the same as those that Python's own finder finds."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import py_compile
import re
import subprocess
import sys
import typing
from collections.abc import Mapping
from functools import partial, wraps
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec, PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, ForwardRef, get_type_hints

import pytest

from backline.cli import quick_imports as module
from backline.cli.quick_imports import _UNUSED, QuickFinder, quick_imports
from support.tools import make_certificate


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `sample` with a compiled module `sample.one`."""
    monkeypatch.setattr(module, "_PACKAGES", frozenset({"sample"}))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # then no import below changes a compiled file
    source = tmp_path / "one.py"
    source.write_text('"""A module."""\nnumber = 1\n')
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    return tmp_path


def found(package: Path, name: str = "sample.one") -> ModuleSpec | None:
    return QuickFinder().find_spec(name, [str(package)])


def number(spec: ModuleSpec | None) -> object:
    assert spec is not None
    assert spec.loader is not None
    made = module_from_spec(spec)
    spec.loader.exec_module(made)
    return made.number


def test_a_module_has_the_attributes_that_python_gives_it(package: Path) -> None:
    expected, spec = PathFinder.find_spec("sample.one", [str(package)]), found(package)

    assert expected is not None
    assert spec is not None
    assert number(spec) == number(expected) == 1
    for name in ("__name__", "__package__", "__file__", "__cached__"):
        assert getattr(module_from_spec(spec), name) == getattr(module_from_spec(expected), name)
    for name in ("name", "origin", "has_location", "cached", "parent", "submodule_search_locations"):
        assert getattr(spec, name) == getattr(expected, name)
    assert spec.loader.get_source("sample.one") == (package / "one.py").read_text()  # type: ignore[union-attr]


def test_a_module_is_left_to_python_if_its_compiled_file_is_not_up_to_date(package: Path) -> None:
    source, cached = package / "one.py", Path(found(package).cached)  # type: ignore[union-attr, arg-type]
    compiled, before = cached.read_bytes(), source.stat()

    source.write_text("number = 22\n")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found(package) is None  # another size
    source.write_text('"""A module."""\nnumber = 2\n')
    os.utime(source, (before.st_atime, before.st_mtime + 5))
    assert found(package) is None  # another time
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found(package) is not None
    cached.write_bytes(b"\0\0" + compiled[2:])
    assert found(package) is None  # another version of Python
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
    assert found(package) is None  # valid as long as the source has the same hash
    cached.unlink()
    assert found(package) is None
    cached.write_bytes(compiled)
    source.unlink()
    assert found(package) is None


def test_a_module_that_is_loaded_again_is_read_again(package: Path) -> None:
    spec = found(package)
    assert number(spec) == 1

    (package / "one.py").write_text("number = 2345\n")

    assert number(spec) == 2345


def test_a_subpackage_has_the_attributes_that_python_gives_it(package: Path) -> None:
    source = package / "inner" / "__init__.py"
    source.parent.mkdir()
    source.touch()
    assert found(package, "sample.inner") is None  # it is not compiled
    py_compile.compile(str(source), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    expected, spec = PathFinder.find_spec("sample.inner", [str(package)]), found(package, "sample.inner")

    assert expected is not None
    assert spec is not None
    for name in ("__name__", "__package__", "__file__", "__cached__", "__path__"):
        assert getattr(module_from_spec(spec), name) == getattr(module_from_spec(expected), name)


def test_modules_of_other_packages_are_left_to_python(package: Path) -> None:
    assert found(package, "other.one") is None
    assert QuickFinder().find_spec("sample") is None


def test_no_module_shares_its_name_with_something_that_python_would_prefer() -> None:
    for package in module._PACKAGES:
        (folder,) = import_module(package).__path__
        for source in Path(folder).rglob("*.py"):
            assert not source.with_suffix("").is_dir()
            assert not any(source.with_suffix(suffix).exists() for suffix in EXTENSION_SUFFIXES)


def test_the_finder_and_the_stand_ins_are_gone_after_the_block() -> None:
    before = list(sys.meta_path), set(sys.modules), dict(os.environ)
    with quick_imports():
        pass

    assert (list(sys.meta_path), set(sys.modules), dict(os.environ)) == before


def test_a_stand_in_gives_way_to_its_module_when_more_of_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_UNUSED", {"colorsys": {"ONE_THIRD": "a third"}})
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    with quick_imports():
        from colorsys import ONE_THIRD

        assert str(ONE_THIRD) == "a third"
    assert "colorsys" not in sys.modules
    with quick_imports():
        import colorsys

        assert colorsys.rgb_to_hls(0, 0, 0) == (0, 0, 0)
        real = sys.modules["colorsys"]
        assert real.ONE_THIRD == 1 / 3
        assert colorsys.hls_to_rgb is real.hls_to_rgb
    assert sys.modules["colorsys"] is real


STAND_IN: Mapping[str, Any] = _UNUSED["inspect"]


async def coroutine() -> None:
    pass


async def generator() -> object:
    yield 1


class Handler:
    async def method(self) -> None:
        pass

    async def __call__(self) -> None:
        pass


@wraps(coroutine)
def wrapper() -> object:
    return coroutine()


CALLABLES = [
    coroutine, generator, wrapper, len, print, Handler, Handler(), Handler().method, Handler.method,
    partial(coroutine), partial(partial(Handler().method)), partial(len), lambda: None, "".join, None, 1,
]  # fmt: skip


def marked() -> object:
    return coroutine()


if sys.version_info >= (3, 12):
    CALLABLES.append(inspect.markcoroutinefunction(marked))


@pytest.mark.parametrize("name", ["iscoroutinefunction", "isfunction", "unwrap"])
@pytest.mark.parametrize("value", CALLABLES)
def test_functions_of_the_stand_in_for_inspect_return_what_those_of_inspect_return(
    name: str, value: object
) -> None:
    assert STAND_IN[name](value) == getattr(inspect, name)(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "One.",
        "  One.\n    Two.\n\n      Three.\n    ",
        "\n\n  a\n\tb\n   ",
        "a\n \n  b",
        "   \n  ",
    ],
)
def test_help_texts_are_cleaned_as_by_inspect(text: str) -> None:
    assert STAND_IN["cleandoc"](text) == inspect.cleandoc(text)


def test_a_pattern_made_during_imports_is_compiled_when_it_is_used() -> None:
    with quick_imports():
        pattern = re.compile("a(b+)", re.IGNORECASE)
        wrong = re.compile("(")

    assert "pattern" not in vars(pattern)
    assert pattern.fullmatch("ABB")
    assert pattern.pattern == "a(b+)"
    with pytest.raises(re.error):
        wrong.match("")
    assert re.compile("a") == re.compile("a")


def test_a_pattern_made_during_imports_can_be_used_like_any_other() -> None:
    with quick_imports():
        pattern, same = re.compile(rb"[a-z]"), re.compile(rb"[a-z]", flags=re.ASCII)

    assert isinstance(pattern, re.Pattern)
    assert re.compile(pattern) is pattern
    assert re.sub(pattern, b"-", b"1a2b") == pattern.sub(b"-", b"1a2b") == b"1-2-"
    assert [found[0] for found in same.finditer(b"1a2b")] == [b"a", b"b"]
    assert pickle.loads(pickle.dumps(pattern)) == copy.deepcopy(pattern) == re.compile(rb"[a-z]")


def test_an_annotation_made_during_imports_is_compiled_when_it_is_evaluated() -> None:
    def function() -> None: ...

    with quick_imports():
        right, wrong = ForwardRef("list[int]"), ForwardRef("(")

    function.__annotations__ = {"return": right}
    assert get_type_hints(function) == {"return": list[int]}
    function.__annotations__ = {"return": wrong}
    with pytest.raises(SyntaxError):
        get_type_hints(function)
    assert "compile" not in vars(typing)


def test_an_event_loop_imported_without_ssl_and_subprocess_can_use_both(tmp_path: Path) -> None:
    pytest.importorskip("uvloop")
    certificate = make_certificate(tmp_path)
    program = f"""
import sys, backline.cli.main
from backline.cli.quick_imports import import_uvloop

with backline.cli.main.quick_imports():
    import asyncio
loop = import_uvloop().new_event_loop()
print(sorted({{"inspect", "ssl", "subprocess"}} & sys.modules.keys()))

async def answer(reader, writer):
    writer.write(await reader.readline())
    await writer.drain()
    writer.close()

async def main():
    import ssl
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain({str(certificate.certificate)!r}, {str(certificate.key)!r})
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=server_side)
    port = server.sockets[0].getsockname()[1]
    trusting = ssl.create_default_context(cafile={str(certificate.certificate)!r})
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
    writer.write(b"over TLS\\n")
    print(await reader.readline())
    writer.close()
    try:
        await asyncio.open_connection("127.0.0.1", port, ssl=ssl.create_default_context())
    except ssl.SSLCertVerificationError:
        print("refused")
    child = await asyncio.create_subprocess_exec("echo", "child", stdout=asyncio.subprocess.PIPE)
    print((await child.communicate())[0])

    def refuse():
        raise ValueError

    try:
        await asyncio.create_subprocess_exec("true", preexec_fn=refuse)
    except asyncio.base_events.subprocess.SubprocessError:
        print("failed")

loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.stdout.splitlines() == ["[]", r"b'over TLS\n'", "refused", r"b'child\n'", "failed"], (
        done.stderr
    )


def test_a_server_imports_its_modules_quickly_and_none_that_it_does_not_use() -> None:
    program = """
import sys
from backline.cli.quick_imports import _UNUSED
before = set(sys.modules)
from backline.cli import main

main.command.get_command(None, "serve")
ours = [each for name, each in sys.modules.items() if name.startswith("backline.cli.serve.")]
print([each for each in ours if type(each.__loader__).__name__ != "_Loader"])
# compile() creates these classes; from Python 3.14 on, typing imports them.
print([each for each in object.__subclasses__() if each.__module__ == "ast" and sys.version_info < (3, 14)])
print(sorted(_UNUSED.keys() & sys.modules.keys() - before))
rare = {"repository", "rest.generate", "settings"}
print([each for each in rare if f"backline.dialects.open_inference.{each}" in sys.modules])

import numpy.ma, numpy.typing
print(numpy.add.reduce([1, 2]), numpy.linalg.eigh([[1.0]]).eigenvalues)
print(numpy.typing.NDArray[numpy.float32].__origin__)
print(numpy.roots([1, -2]), numpy.asmatrix([[2]]) ** 2, numpy.ones(1, numpy.uint8).dumps()[-1:])
"""
    # The first process compiles what is not compiled.
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        )
    assert done.stdout == "[]\n[]\n[]\n[]\n3 [1.]\n<class 'numpy.ndarray'>\n[2.] [[4]] b'.'\n"
