"""The parameters of requests and responses: given as a dict, read as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from backline.workers.child.triton.errors import TritonModelException
from backline.workers.process.protocol import Parameter


def read_parameters(given: Any) -> dict[str, Parameter]:
    """The parameters in a dict, None, or JSON of an object. Raises TritonModelException for keys and values of other types."""
    if given is None or given == "":
        return {}
    if isinstance(given, str):
        given = json.loads(given)
    if not isinstance(given, Mapping):
        raise TritonModelException(f"Expect parameters to have type dict, found type {type(given)}")
    for key, value in given.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, float, str)):
            raise TritonModelException(
                f"Expect parameters values to have type bool/int/str, found type {type(value)}"
            )
    return dict(given)


def as_json(parameters: Mapping[str, Parameter]) -> str:
    """The text that `parameters()` gives."""
    return json.dumps(parameters, ensure_ascii=False, separators=(",", ":")) if parameters else ""
