"""Checks the file of a Python model by reading it, without running it."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

from backline.environments.packed import PARAMETER
from backline.environments.requirements import find_requirements
from backline.repository.repository import FoundModel
from backline_client.values.errors import BacklineError

_Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
#: The class of a model for Triton's Python backend, which needs no type hints.
_TRITON_CLASS = "TritonPythonModel"
#: The modules that the server provides to its Python models.
_PROVIDED = frozenset({"backline", "triton_python_backend_utils"})


def source_problems(file: Path, model_folder: Path, found: FoundModel) -> Iterator[str]:
    """Yields what is wrong with the file of a Python model: a syntax error, imports of packages that are not
    installed, and missing type hints.

    Imports are checked only if the model runs with the server's packages, and only those at the top level of
    the file, because others may be optional.
    """
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        yield f"{file}:{line}: SyntaxError: {getattr(error, 'msg', error)}"
        return
    if not _has_environment(file, model_folder, found):
        for node, name in _imports(tree):
            if not _is_there(name, (file.parent, model_folder)):
                yield (
                    f"{file}:{node.lineno}: the module '{name}' is not installed; install it, or list the"
                    f" package in '{model_folder / 'requirements.txt'}'"
                )
    if not _may_have_triton_class(tree):
        yield from _missing_hints(tree, file)


def _has_environment(file: Path, model_folder: Path, found: FoundModel) -> bool:
    """Returns whether the model runs with other packages than the server's."""
    config = found.config
    if PARAMETER in config.parameters:
        return True
    try:
        return find_requirements(file.parent, model_folder) is not None
    except BacklineError:
        return True


def _imports(tree: ast.Module) -> Iterator[tuple[ast.stmt, str]]:
    """Yields the top-level imports of a file, each with the name of the top-level package."""
    for node in tree.body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node, alias.name.partition(".")[0]
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node, node.module.partition(".")[0]


def _is_there(name: str, folders: tuple[Path, ...]) -> bool:
    if name in _PROVIDED or name in sys.stdlib_module_names:
        return True
    if any((folder / f"{name}.py").exists() or (folder / name).is_dir() for folder in folders):
        return True
    try:
        return find_spec(name) is not None  # runs no code, as the name has no dot
    except (ImportError, ValueError):
        return False


def _may_have_triton_class(tree: ast.Module) -> bool:
    return any(
        (isinstance(node, ast.ClassDef) and node.name == _TRITON_CLASS)
        or (isinstance(node, ast.Name) and node.id == _TRITON_CLASS)
        or (isinstance(node, ast.alias) and _TRITON_CLASS in (node.name, node.asname))
        or (isinstance(node, ast.alias) and node.name == "*")
        for node in ast.walk(tree)
    )


def _missing_hints(tree: ast.Module, file: Path) -> Iterator[str]:
    found = _predict(tree)
    if found is None:
        return
    function, is_method = found
    where = f"{file}:{function.lineno}: {function.name}"
    arguments = [*function.args.posonlyargs, *function.args.args]
    static = any(isinstance(one, ast.Name) and one.id == "staticmethod" for one in function.decorator_list)
    named = [*arguments[1 if is_method and not static else 0 :], *function.args.kwonlyargs]
    for argument in named:
        if argument.annotation is None:
            yield f"{where}: '{argument.arg}' has no type hint, from which the server learns its datatype"
    if function.returns is None:
        yield f"{where}: the returned value has no type hint, from which the server learns its datatype"


def _predict(tree: ast.Module) -> tuple[_Function, bool] | None:
    """Returns the method or function that the server would call, and whether it is a method; None if the file
    alone does not tell.
    """
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    methods = {
        owner.name: method
        for owner in classes
        for method in _functions(owner.body)
        if method.name == "predict"
    }
    if methods:
        method = methods.get("Model") or (next(iter(methods.values())) if len(methods) == 1 else None)
        return None if method is None else (method, True)
    if classes:  # a class may inherit its `predict`
        return None
    functions = {function.name: function for function in _functions(tree.body)}
    public = [function for name, function in functions.items() if not name.startswith("_")]
    chosen = functions.get("predict") or (public[0] if len(public) == 1 else None)
    return None if chosen is None else (chosen, False)


def _functions(body: list[ast.stmt]) -> list[_Function]:
    return [node for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
