"""Plain HTTP: inputs by name as JSON, files or a raw body; outputs as JSON or as a file."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="plain",
        target="backline.plugins.dialects.plain.service:PlainDialect",
        summary="Inputs by name as JSON, files or a raw body, over HTTP and WebSocket",
        routes=("POST /models/{}", "POST /models/{}/versions/{}"),
        websockets=("/models/{}/stream", "/models/{}/versions/{}/stream"),
        page="docs/protocol.md",
    ),
)
