"""Functions that handlers import. They map class indices to labels, and list the classes in a module."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any


class PredictionException(Exception):
    """Raised by a handler to fail all requests of its batch with a message and an HTTP status."""

    def __init__(self, message: str, error_code: int = 500) -> None:
        super().__init__(message)
        self.message = message
        self.error_code = error_code

    def __str__(self) -> str:
        return f"{self.message} : {self.error_code}"


def list_classes_from_module(module: ModuleType, parent_class: type | None = None) -> list[type]:
    """Returns the classes that a module defines, or only the subclasses of `parent_class`."""
    own = [
        found
        for _, found in inspect.getmembers(module, inspect.isclass)
        if found.__module__ == module.__name__
    ]
    return own if parent_class is None else [found for found in own if issubclass(found, parent_class)]


def load_label_mapping(mapping_file_path: str) -> dict[str, str] | None:
    """Returns the class names in an index_to_name.json, by index (as a string), or None if the file does not
    exist.

    A class name is given as a string, or as a list of strings whose last string is the name. Older files have
    the form {"object_type_names": [...]}. Raises ValueError for any other content.
    """
    path = Path(mapping_file_path)
    if not path.is_file():
        return None
    mapping = json.loads(path.read_text("utf-8"))
    if isinstance(mapping, dict) and isinstance(mapping.get("object_type_names"), list):
        mapping = dict(enumerate(mapping["object_type_names"]))
    if not isinstance(mapping, dict):
        raise ValueError(f"{path.name} must be a JSON object that maps class indices to names")
    names = {
        str(number): name[-1] if isinstance(name, list) and name else name for number, name in mapping.items()
    }
    wrong = next((number for number, name in names.items() if not isinstance(name, str)), None)
    if wrong is not None:
        raise ValueError(f"{path.name}: the name of class {wrong} must be a string, or a list of strings")
    return names


def map_class_to_label(
    probs: Sequence[Sequence[Any]],
    mapping: dict[str, str] | None = None,
    lbl_classes: Sequence[Sequence[int]] | None = None,
) -> list[dict[str, Any]]:
    """Returns {class name: value} for each row. `lbl_classes` has the class indices of each row, by default
    0, 1, 2... Without a `mapping`, the index as a string replaces the class name.
    """
    rows = lbl_classes if lbl_classes is not None else [range(len(row)) for row in probs]
    return [
        {
            (str(number) if mapping is None else mapping[str(number)]): value
            for number, value in zip(numbers, values, strict=False)
        }
        for numbers, values in zip(rows, probs, strict=False)
    ]
