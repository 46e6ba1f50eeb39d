"""OpenAPI documents (version 3.1) of the server and of each model."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="openapi",
        target="backline.plugins.dialects.openapi.service:OpenApiDialect",
        summary="OpenAPI documents of the server and of each model",
        routes=(
            "GET /openapi.json",
            "GET /v2/models/{}/openapi.json",
            "GET /v2/models/{}/versions/{}/openapi.json",
        ),
        page="docs/protocol.md",
    ),
)
