"""The envelope for TensorFlow Serving's REST protocol: a request is `{"instances": [...]}`, and the response
is `{"predictions": [...]}`.
"""

from __future__ import annotations

import json
from base64 import b64decode
from typing import Any

from .base import BaseEnvelope, json_of


class JSONEnvelope(BaseEnvelope):
    """An envelope that joins the instances of all requests into one batch. `{"b64": "..."}` represents bytes
    in base64.
    """

    _lengths: list[int]

    def parse_input(self, data: Any) -> Any:
        batches = [[_decoded(instance) for instance in json_of(row)["instances"]] for row in data]
        self._lengths = list(map(len, batches))
        return [instance for batch in batches for instance in batch]

    def format_output(self, data: Any) -> Any:
        answers, start = [], 0
        for length in self._lengths:
            answers.append(json.dumps({"predictions": data[start : start + length]}))
            start += length
        return answers


def _decoded(instance: Any) -> Any:
    if not isinstance(instance, dict):
        return instance
    if list(instance) == ["b64"]:
        return b64decode(instance["b64"])
    return {
        key: b64decode(value["b64"]) if isinstance(value, dict) and list(value) == ["b64"] else value
        for key, value in instance.items()
    }
