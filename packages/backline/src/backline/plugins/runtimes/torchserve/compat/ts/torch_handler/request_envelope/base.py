"""The base class of envelopes."""

from __future__ import annotations

import abc
import json
from collections.abc import Callable
from typing import Any


class BaseEnvelope(abc.ABC):
    """An envelope, which translates the rows of a batch into a handler's input, and the handler's results
    into responses.
    """

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        self.context = context
        results = self._handle_fn(self.parse_input(data) if data else data, context)
        return self.format_output(results) if results else results

    @abc.abstractmethod
    def parse_input(self, data: Any) -> Any: ...

    @abc.abstractmethod
    def format_output(self, data: Any) -> Any: ...


def body_of(row: Any) -> Any:
    """Returns the body of a request, which TorchServe passes under the key "data" or "body"."""
    return row.get("data") or row.get("body")


def json_of(row: Any) -> Any:
    """Returns the body of a request, parsed as JSON. Raises ValueError if the body is not valid JSON."""
    body = body_of(row)
    return json.loads(body) if isinstance(body, (bytes, bytearray, str)) else body
