"""The console: a page for browsers, and the routes that tell the page what the server is doing."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="console",
        target="backline.plugins.dialects.console.service:ConsoleDialect",
        summary="A page for browsers, and what the server is doing",
        routes=(
            "GET /",
            "GET /console",
            "GET /console/{}",
            "GET /v2/access",
            "GET /v2/activity",
            "GET /v2/traces",
            "GET /v2/graph",
            "GET /v2/logging/lines",
            "GET /v2/models/{}/examples",
            "GET /v2/models/{}/examples/{}",
            "GET /v2/models/{}/recorded",
        ),
        page="docs/console.md",
    ),
)
