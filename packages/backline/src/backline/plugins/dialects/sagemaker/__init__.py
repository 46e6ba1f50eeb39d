"""The routes by which Amazon SageMaker's endpoints call a container."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="sagemaker",
        target="backline.plugins.dialects.sagemaker.service:SageMaker",
        summary="The container routes of Amazon SageMaker's endpoints",
        routes=("POST /invocations", "POST /models/{}/invoke"),
        fallbacks=("GET /ping",),
        page="docs/moving-from/sagemaker.md",
    ),
)
