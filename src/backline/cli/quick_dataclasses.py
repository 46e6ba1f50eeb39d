"""Defines dataclasses faster than the standard library, so that importing the modules of a command is quick.

For each class, `dataclasses.dataclass` writes and compiles the source of up to eight methods. The server has
more than 150 such classes. Compiling their methods took a quarter of its start-up time, although most of the
methods are never called, and most classes of options have only one object. Here, `__init__` is compiled only
after several objects have been created, and the other methods are closures, which need no compilation per
class (docs/decisions/a-quick-start.md).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from operator import attrgetter, eq
from reprlib import recursive_repr
from types import MemberDescriptorType
from typing import Any, Final

_dataclass: Final[Callable[..., Any]] = dataclasses.dataclass
#: The supported options of `dataclass`. The standard library handles classes with any other option.
_OPTIONS: Final = frozenset({"eq", "frozen", "kw_only", "repr", "slots"})
#: The standard library also handles classes that define any of these methods, because such classes need
#: different code.
_SPECIAL: Final = ("__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
#: Whether `==` compares the fields one by one, as Python 3.13 and later do. Earlier versions compare tuples
#: of the fields, in which a NaN equals itself.
_ONE_BY_ONE: Final = sys.hexversion >= 0x030D0000
#: The number of objects that are created without compiling `__init__`. Compiling it takes as long as creating
#: about 30 objects without it.
_UNCOMPILED: Final = 16


@contextmanager
def quick_dataclasses() -> Iterator[None]:
    """Makes Backline's modules that are imported during a `with` block define dataclasses with
    `quick_dataclass`.
    """
    dataclasses.dataclass = _for_our_modules
    try:
        yield
    finally:
        dataclasses.dataclass = _dataclass


def _for_our_modules(cls: type | None = None, /, **options: Any) -> Any:
    if cls is None:
        return lambda it: _for_our_modules(it, **options)
    ours = cls.__module__.startswith("backline.")
    return quick_dataclass(cls, **options) if ours else _dataclass(cls, **options)


def quick_dataclass(cls: type, **options: Any) -> type:
    """Returns what `dataclasses.dataclass(cls, **options)` returns, except that `inspect` shows another
    signature, and that mistakes in the class definition are not detected.

    Leaves classes with rare options or methods to the standard library.
    """
    own = vars(cls)
    annotations = cls.__annotations__.values()
    frozen, slots = options.get("frozen", False), options.get("slots", False)
    if (
        not _OPTIONS.issuperset(options)
        or any(name in own for name in _SPECIAL)
        or any(not isinstance(text, str) or "InitVar" in text or "KW_ONLY" in text for text in annotations)
        # The standard library raises an error if a frozen class inherits from one that is not frozen, or vice
        # versa.
        or any(base.__dataclass_params__.frozen != frozen for base in _dataclasses_above(cls))
    ):
        return _dataclass(cls, **options)  # type: ignore[no-any-return]
    found = _fields_of(cls, kw_only=options.get("kw_only", False))
    fields, names = list(found.values()), list(found)
    params = copy(_SAMPLE_PARAMS)
    for option in ("init", "repr", "eq", "frozen", "kw_only", "slots"):
        if hasattr(params, option):
            setattr(params, option, options.get(option, option in ("init", "repr", "eq")))
    made = _Made()
    added: dict[str, Any] = {
        "__dataclass_fields__": found,
        "__dataclass_params__": params,
        "__match_args__": tuple(field.name for field in fields if field.init and not field.kw_only),
        "__doc__": cls.__doc__ or cls.__name__,  # the standard library would use the signature
    }
    if replace := vars(_Sample).get("__replace__"):  # since Python 3.13
        added["__replace__"] = replace
    if "__init__" not in own:
        added["__init__"] = _init_of(
            made, fields, frozen=frozen, slots=slots, checked=hasattr(cls, "__post_init__")
        )
    if options.get("repr", True) and "__repr__" not in own:
        added["__repr__"] = _repr_of([field.name for field in fields if field.repr])
    if options.get("eq", True):
        added["__eq__"] = _eq_of([field.name for field in fields if field.compare])
        hashed = (field.name for field in fields if (field.compare if field.hash is None else field.hash))
        added["__hash__"] = _hash_of(list(hashed)) if frozen else None
    if frozen:
        added["__setattr__"], added["__delattr__"] = _refusals(made, frozenset(names))
        if slots:
            added["__getstate__"], added["__setstate__"] = _state_functions(names)
    if slots:
        # Python updates a class for each method that is added to it, so they are added before it exists.
        made.cls = _with_slots(cls, names, added)
    else:
        for name, value in added.items():
            setattr(cls, name, value)
        made.cls = cls
    return made.cls  # type: ignore[no-any-return]


class _Made:
    """Where the methods of a class find the class, which is created after them."""

    __slots__ = ("cls",)
    cls: Any


@_dataclass(init=False, repr=False, eq=False)
class _Sample:
    """A class with the attributes that the standard library gives to every dataclass."""

    field: int


_sample: Any = _Sample
_SAMPLE_PARAMS: Final[Any] = _sample.__dataclass_params__
#: The value by which the standard library marks a field, as opposed to a ClassVar or an InitVar.
_A_FIELD: Final[Any] = _sample.__dataclass_fields__["field"]._field_type


def _dataclasses_above(cls: type) -> list[Any]:
    """Returns the dataclasses that a class inherits from, in the order in which they contribute fields."""
    return [base for base in cls.__mro__[:0:-1] if "__dataclass_fields__" in vars(base)]


def _fields_of(cls: type, *, kw_only: bool) -> dict[str, Any]:
    """Returns the fields of a class by name, inherited fields first.

    Replaces each class attribute that is a `field()` with its default, or deletes it if there is none.
    """
    found: dict[str, Any] = {}
    for base in _dataclasses_above(cls):
        found.update(base.__dataclass_fields__)
    for name, annotation in cls.__annotations__.items():
        if annotation.startswith("ClassVar"):
            continue
        default = getattr(cls, name, dataclasses.MISSING)
        if isinstance(default, MemberDescriptorType):  # a slot of a class that this class inherits from
            default = dataclasses.MISSING
        given = isinstance(default, dataclasses.Field)
        one: Any = default if given else dataclasses.field(default=default)
        if given and one.default is dataclasses.MISSING:
            delattr(cls, name)
        elif given:
            setattr(cls, name, one.default)
        one.name, one.type, one._field_type = name, annotation, _A_FIELD
        if one.kw_only is dataclasses.MISSING:
            one.kw_only = kw_only
        found[name] = one
    return found


def _with_slots(cls: type, names: Sequence[str], added: Mapping[str, Any]) -> type:
    """Returns a class like `cls` that also has the attributes `added`, and whose objects have slots for the
    attributes `names`.
    """
    inherited = {name for base in cls.__mro__[1:] for name in vars(base).get("__slots__", ())}
    attributes = dict(vars(cls))
    for name in (*names, "__dict__", "__weakref__"):
        attributes.pop(name, None)
    attributes.update(added)
    attributes["__slots__"] = tuple(name for name in names if name not in inherited)
    made = type(cls)(cls.__name__, cls.__bases__, attributes)
    made.__qualname__ = cls.__qualname__
    return made


def _init_of(
    made: _Made, fields: Sequence[dataclasses.Field[Any]], *, frozen: bool, slots: bool, checked: bool
) -> Callable[..., None]:
    """Returns an `__init__` that sets the fields one by one. After _UNCOMPILED calls, or if the arguments are
    wrong, it compiles the final `__init__`, replaces itself with it, and calls it.
    """
    given = {field.name: field for field in fields if field.init}
    positional = [name for name, field in given.items() if not field.kw_only]
    missing = dataclasses.MISSING
    required = {
        name for name, field in given.items() if field.default is missing and field.default_factory is missing
    }
    # Without slots, the default of a field that is not a parameter is an attribute of the class.
    settings = [
        (field.name, field.default, field.default_factory)
        for field in fields
        if field.init or slots or field.default_factory is not missing
    ]
    put = object.__setattr__ if frozen else setattr
    created = 0

    def initialise(self: Any, *arguments: Any, **named: Any) -> None:
        nonlocal created
        created += 1
        values = dict(zip(positional, arguments, strict=False))
        right = len(arguments) <= len(positional) and named.keys() <= given.keys() - values.keys()
        values.update(named)
        if created > _UNCOMPILED or not right or not required <= values.keys():
            made.cls.__init__ = _compiled_init(made.cls, fields, frozen=frozen, slots=slots)
            made.cls.__init__(self, *arguments, **named)
            return
        for name, default, make in settings:
            if name in values:
                put(self, name, values[name])
            elif make is not missing:
                put(self, name, make())
            elif default is not missing:
                put(self, name, default)
        if checked:
            self.__post_init__()

    return initialise


def _compiled_init(
    made: Any, fields: Sequence[dataclasses.Field[Any]], *, frozen: bool, slots: bool
) -> Callable[..., None]:
    missing = dataclasses.MISSING
    space: dict[str, Any] = {"_set": object.__setattr__, "_missing": missing, "__name__": made.__module__}
    positional, keywords, lines = ["_self"], list[str](), list[str]()
    for field in fields:
        name, value = field.name, field.name
        made_up = field.default_factory is not missing
        if made_up:
            space[f"_default_{name}"] = field.default_factory
            value = f"_default_{name}() if {name} is _missing else {name}" if field.init else ""
            value = value or f"_default_{name}()"
        elif field.default is not missing:
            space[f"_default_{name}"] = field.default
            value = name if field.init else f"_default_{name}"
        if field.init:
            default = "_missing" if made_up else f"_default_{name}" if field.default is not missing else ""
            (keywords if field.kw_only else positional).append(f"{name}={default}" if default else name)
        elif not made_up and (field.default is missing or not slots):
            continue  # the field is set later, or its default is an attribute of the class
        lines.append(f"_set(_self, {name!r}, {value})" if frozen else f"_self.{name} = {value}")
    if hasattr(made, "__post_init__"):
        lines.append("_self.__post_init__()")
    parameters = ", ".join((*positional, *(["*", *keywords] if keywords else [])))
    exec(f"def __init__({parameters}):\n " + "\n ".join(lines or ["pass"]), space)
    init: Callable[..., None] = space["__init__"]
    init.__qualname__ = f"{made.__qualname__}.__init__"
    return init


def _values_of(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """Returns a function that takes an object and returns the values of its attributes `names`."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda it: tuple(getattr(it, name) for name in names)


def _repr_of(names: Sequence[str]) -> Callable[[Any], str]:
    @recursive_repr()
    def show(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return show


def _eq_of(names: Sequence[str]) -> Callable[[Any, object], bool]:
    values = _values_of(names)

    def equal(self: Any, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented  # type: ignore[no-any-return]
        if _ONE_BY_ONE:
            return self is other or all(map(eq, values(self), values(other)))
        return bool(values(self) == values(other))

    return equal


def _hash_of(names: Sequence[str]) -> Callable[[Any], int]:
    values = _values_of(names)

    def digest(self: Any) -> int:
        return hash(values(self))

    return digest


def _refusals(made: _Made, names: frozenset[str]) -> tuple[Callable[..., None], Callable[..., None]]:
    """Returns the `__setattr__` and `__delattr__` of a frozen class."""

    def refuse_setting(self: Any, name: str, value: Any) -> None:
        if type(self) is made.cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super(made.cls, self).__setattr__(name, value)

    def refuse_deleting(self: Any, name: str) -> None:
        if type(self) is made.cls or name in names:
            raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
        super(made.cls, self).__delattr__(name)

    return refuse_setting, refuse_deleting


def _state_functions(names: Sequence[str]) -> tuple[Callable[..., list[Any]], Callable[..., None]]:
    """Returns the `__getstate__` and `__setstate__` of a frozen class with slots, for `copy` and `pickle`."""

    def state_of(self: Any) -> list[Any]:
        return [getattr(self, name) for name in names]

    def set_state(self: Any, state: list[Any]) -> None:
        for name, value in zip(names, state, strict=True):
            object.__setattr__(self, name, value)

    return state_of, set_state
