"""Routes: names that requests use like a model's, whose requests go to versions, labels and other models."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="routes",
        target="backline.plugins.traffic.service:RouteDialect",
        summary="Changes how routes spread requests over versions and models",
        routes=(
            "GET /v2/routes",
            "GET /v2/routes/{}",
            "PUT /v2/routes/{}",
            "DELETE /v2/routes/{}",
            "GET /v2/routes/{}/history",
            "POST /v2/routes/{}/rollback",
            "POST /v2/routes/{}/rollout",
            "POST /v2/models/{}/feedback",
        ),
        page="docs/traffic.md",
    ),
)
