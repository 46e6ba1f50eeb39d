"""Dataclasses that are defined quickly behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import sys
from collections.abc import Callable
from dataclasses import field
from typing import Any, ClassVar

import pytest

from backline.cli.quick_dataclasses import quick_dataclass, quick_dataclasses


class Point:
    x: int
    y: int = 2
    many: list[int] = field(default_factory=list)
    named: str = field(default="a", kw_only=True)
    hidden: int = field(default=0, repr=False, compare=False)
    shared: ClassVar[int] = 7


class Checked:
    size: int
    double: int = field(init=False)
    fixed: int = field(init=False, default=5)
    made: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("negative")
        object.__setattr__(self, "double", 2 * self.size)


class Single:
    value: object


class Empty:
    pass


#: The flag of a function that takes any positional arguments (inspect.CO_VARARGS).
TAKES_ANY = 0x04

OPTIONS: tuple[dict[str, bool], ...] = (
    {},
    {"frozen": True},
    {"slots": True},
    {"frozen": True, "slots": True},
    {"frozen": True, "slots": True, "kw_only": True},
    {"slots": True, "eq": False},
    {"frozen": True, "slots": True, "eq": False, "repr": False},
)


def fresh(body: type) -> type:
    """A new class with the contents of `body`."""
    own = {
        name: copy.copy(value) if isinstance(value, dataclasses.Field) else value
        for name, value in vars(body).items()
    }
    for name in ("__dict__", "__weakref__"):
        own.pop(name, None)
    return type(body.__name__, (), {**own, "__doc__": "A class."})


def outcome(act: Callable[[], Any]) -> object:
    """What a call returns, or the type of its error, and for FrozenInstanceError the text."""
    try:
        return act()
    except dataclasses.FrozenInstanceError as error:
        return str(error)
    except Exception as error:
        return type(error)


def behaviour(made: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> list[object]:
    """What objects of a class do, in a form that does not depend on the class object."""
    one, other = made(*arguments, **named), made(*arguments, **named)
    names = [each.name for each in dataclasses.fields(made)]

    def values(it: Any) -> list[object]:
        return [getattr(it, name) for name in names]

    def change(it: Any, name: str) -> object:
        setattr(it, name, 1)
        return getattr(it, name)

    def delete(it: Any, name: str) -> None:
        delattr(it, name)

    shown = made.__repr__ is not object.__repr__
    return [
        values(one),
        repr(one) if shown else "",
        one == other,
        one == arguments,
        outcome(lambda: hash(one) == hash(other)),
        made.__hash__ is None,
        outcome(lambda: values(dataclasses.replace(one))),
        values(copy.copy(one)),
        values(copy.deepcopy(one)),
        dataclasses.asdict(one),
        made.__match_args__,
        hasattr(one, "__dict__"),
        [outcome(lambda name=name: change(made(*arguments, **named), name)) for name in names],
        # With slots, some versions of Python raise TypeError for an attribute that is no field.
        outcome(lambda: change(one, "further")) == 1,
        [outcome(lambda name=name: delete(made(*arguments, **named), name)) for name in names],
        made.__dataclass_params__.frozen,
        made.__dataclass_params__.eq,
        outcome(lambda: made(1, 2, 3, 4, 5, 6, 7)),
        outcome(lambda: made(unknown=1)),
    ]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize(
    ("body", "arguments", "named"),
    [
        (Point, (), {"x": 1}),
        (Point, (), {"x": 1, "y": 3, "many": [4], "named": "b", "hidden": 9}),
        (Checked, (), {"size": 3}),
        (Single, (), {"value": float("nan")}),
        (Single, (), {"value": [1]}),
        (Empty, (), {}),
    ],
    ids=["defaults", "all", "post-init", "nan", "unhashable", "empty"],
)
def test_objects_behave_like_those_of_the_standard_library(
    body: type, arguments: tuple[Any, ...], named: dict[str, Any], options: dict[str, bool]
) -> None:
    standard = dataclasses.dataclass(**options)(fresh(body))
    quick = quick_dataclass(fresh(body), **options)

    # As text, in which values that are not a number are equal.
    expected = repr(behaviour(standard, arguments, named))
    assert repr(behaviour(quick, arguments, named)) == expected
    for _ in range(20):
        quick(*arguments, **named)
    assert not quick.__init__.__code__.co_flags & TAKES_ANY  # it is compiled now
    assert repr(behaviour(quick, arguments, named)) == expected


def test_errors_of_an_initialiser_reach_the_caller() -> None:
    made = quick_dataclass(fresh(Checked), frozen=True)

    for _ in range(20):  # also after its initialiser has been compiled
        with pytest.raises(ValueError, match="negative"):
            made(-1)


def test_a_frozen_class_with_slots_can_be_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    body = type("Pickled", (), {"__annotations__": {"x": "int"}, "__module__": __name__, "__doc__": "A."})
    made: Any = quick_dataclass(body, frozen=True, slots=True)
    monkeypatch.setattr(sys.modules[__name__], "Pickled", made, raising=False)

    assert pickle.loads(pickle.dumps(made(3))) == made(3)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "plain")
def test_a_dataclass_that_inherits_behaves_like_one_of_the_standard_library(options: dict[str, bool]) -> None:
    expected, found = [], []
    for define, behaviours in ((dataclasses.dataclass, expected), (quick_dataclass, found)):
        base: Any = define(fresh(Point), **options)  # type: ignore[operator]
        child = type("Child", (base,), {"__annotations__": {"z": "int"}, "z": 5, "__doc__": "A class."})
        made: Any = define(child, **options)  # type: ignore[operator]
        for _ in range(2):
            behaviours.append(repr(behaviour(made, (), {"x": 1, "z": 3})))
            for _ in range(20):
                made(x=1)
        with pytest.raises(TypeError):
            define(type("Other", (base,), {}), frozen=not options.get("frozen", False))  # type: ignore[operator]

    assert found == expected


def test_only_classes_of_backline_are_defined_quickly_and_only_within_the_block() -> None:
    before = dataclasses.dataclass
    with quick_dataclasses():
        made = {
            module: dataclasses.dataclass(
                type("A", (), {"__annotations__": {"x": "int"}, "__module__": module})
            )
            for module in ("backline.version", "copy")
        }
        outside = dataclasses.dataclass(frozen=True)(type("B", (), {"__module__": "copy"}))

    assert dataclasses.dataclass is before
    assert made["backline.version"].__init__.__code__.co_flags & TAKES_ANY
    assert not made["copy"].__init__.__code__.co_flags & TAKES_ANY
    assert outside.__dataclass_params__.frozen
