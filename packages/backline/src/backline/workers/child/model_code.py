"""Imports a Python model's file, and finds the class or function in the file that is the model."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

#: The settings that a model's code may contain. For each: the allowed types, the expected value in words, and
#: a check of the value.
_SETTINGS: dict[str, tuple[tuple[type, ...], str, Callable[[Any], bool]]] = {
    "max_batch_size": ((int,), "a whole number, 0 for no batches", lambda value: value >= 0),
    "instances": ((int,), "a whole number above 0", lambda value: value > 0),
    "idempotent": ((bool,), "True or False", lambda value: True),
    "execution_timeout_seconds": ((int, float), "a number of seconds above 0", lambda value: value > 0),
    "memory_limit_bytes": ((int,), "a whole number above 0", lambda value: value > 0),
    "decoded_limit_bytes": ((int,), "a whole number above 0", lambda value: value > 0),
    "decode_timeout_seconds": ((int, float), "a number of seconds above 0", lambda value: value > 0),
}
#: An attribute counts as a misspelt setting if its name is at least this similar, on a scale from 0 to 1, to
#: the name of a setting. `max_batch` counts, `size` does not.
_NEARLY = 0.78


@dataclass(frozen=True, slots=True)
class ModelCode:
    """A Python model: the method `predict` of the class `owner`, or a plain function. The type hints of the
    method or function are the model's signature.

    `settings` is the class or, for a function, the module; its attributes are the model's settings.
    """

    name: str
    predict: Callable[..., Any]
    settings: object
    owner: type | None = None

    def setting(self, name: str) -> Any:
        """Returns one of the model's settings, or None if it is not set. Raises InvalidArgument for an
        invalid value.
        """
        value = getattr(self.settings, name, None)
        types, expected, fits = _SETTINGS[name]
        if value is None or (type(value) in types and fits(value)):
            return value
        raise InvalidArgument(f"{self.name.partition('.')[0]}.{name} is {value!r}, expected {expected}")

    def misspelt(self) -> list[str]:
        """Returns a warning for each number or boolean whose name is similar to that of a setting."""
        where = self.name.partition(".")[0] + "." if self.owner is not None else ""
        named = (
            name
            for name, value in vars(self.settings).items()
            if type(value) in (int, float, bool) and name not in _SETTINGS
        )
        near = (
            (name, setting) for name in named for setting in nearest(name, _SETTINGS, 1, _NEARLY, whole=True)
        )
        return [
            f"{where}{name} is not a setting and has no effect; did you mean '{setting}'?"
            for name, setting in near
        ]

    @property
    def parameters(self) -> list[inspect.Parameter]:
        """The parameters without `self`."""
        found = list(inspect.signature(self.predict).parameters.values())
        return found if self.owner is None else found[1:]


def import_file(path: Path, folder: Path) -> ModuleType:
    """Imports a file as a module. The module can import other modules from its own folder, even relatively,
    and from `folder`.
    """
    for place in (folder, path.parent):
        sys.path.insert(0, str(place))
    # The package is named after the version, as in Triton, because a number cannot clash with the name of a
    # real module.
    package = ModuleType(path.parent.name if path.parent.name.isdecimal() else "_model")
    package.__path__ = [str(path.parent)]
    spec = spec_from_file_location(f"{package.__name__}.{path.stem}", path)
    if spec is None or spec.loader is None:
        raise InvalidArgument(f"'{path}' is not a Python file")
    module = module_from_spec(spec)
    sys.modules[package.__name__], sys.modules[spec.name], sys.modules["model"] = package, module, module
    spec.loader.exec_module(module)
    return module


def find_model(module: ModuleType, path: str) -> ModelCode:
    """Finds the class `Model`, or the only class in the file with a method `predict`. Without such a class,
    finds the function `predict`, or the only public function with a return annotation.

    Raises InvalidArgument if the file has no such class or function, or several of which none is called
    `Model` or `predict`.
    """
    own = {
        name: value
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__
    }
    classes = {
        value.__name__: value
        for value in own.values()
        if isinstance(value, type) and callable(getattr(value, "predict", None))
    }
    if owner := _only(classes, "Model", getattr(module, "Model", None), path):
        return ModelCode(f"{owner.__name__}.predict", owner.predict, owner, owner)
    functions = {name: value for name, value in own.items() if _is_model(name, value)}
    if function := _only(functions, "predict", functions.get("predict"), path):
        return ModelCode(function.__name__, function, module)
    raise InvalidArgument(
        f"'{path}': expected a class with a method predict, or a public function with type hints,"
        f" found none{_nearest(own)}"
    )


def _nearest(own: dict[str, Any]) -> str:
    """Returns the end of an error message, which says why the most likely class or function of the file does
    not count as a model; "" if there is no likely one.
    """
    for name, value in own.items():
        if isinstance(value, type):
            near = nearest("predict", [method for method, code in vars(value).items() if callable(code)], 1)
            if near or name == "Model":
                return f"; class {name} has no method predict" + (f", but {near[0]}" if near else "")
        elif inspect.isfunction(value) and not name.startswith("_"):
            return f"; function {name} has no return type hint, such as -> FP32[-1]"
    return ""


def _is_model(name: str, value: object) -> bool:
    return (
        inspect.isfunction(value)
        and not name.startswith("_")
        and (name == "predict" or _says_what_it_returns(value))
    )


if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def _says_what_it_returns(function: FunctionType) -> bool:
        # FORWARDREF tolerates undefined names: from Python 3.14 on, type hints may name types that only a
        # type checker imports.
        return "return" in get_annotations(function, format=Format.FORWARDREF)

else:

    def _says_what_it_returns(function: FunctionType) -> bool:
        return "return" in function.__annotations__


def _only(found: dict[str, Any], name: str, named: Any, path: str) -> Any:
    """Returns the candidate called `name` or, if there is none of that name, the only candidate. Returns None
    if there are no candidates. Raises InvalidArgument if there are several, none of that name.
    """
    if callable(named) and (not isinstance(named, type) or callable(getattr(named, "predict", None))):
        return named
    if len(found) > 1:
        raise InvalidArgument(
            f"'{path}': expected one model, found several: {', '.join(found)}; rename one of them to {name}"
        )
    return next(iter(found.values()), None)
