"""OpenAI's API of models and embeddings."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="openai",
        target="backline.plugins.dialects.openai.service:OpenAI",
        summary="OpenAI's models and embeddings",
        routes=("GET /v1/models", "GET /v1/models/{}", "POST /v1/embeddings"),
        shared=("GET /v1/models", "GET /v1/models/{}"),
        page="docs/moving-from/openai.md",
    ),
)
