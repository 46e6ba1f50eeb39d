"""The envelope that passes request bodies to the handler unchanged."""

from __future__ import annotations

from typing import Any

from .base import BaseEnvelope, body_of


class BodyEnvelope(BaseEnvelope):
    def parse_input(self, data: Any) -> Any:
        return [body_of(row) for row in data]

    def format_output(self, data: Any) -> Any:
        return data
