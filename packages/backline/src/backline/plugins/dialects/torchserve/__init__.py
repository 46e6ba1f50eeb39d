"""TorchServe's APIs: predictions and explanations, for model archives and for models of all other formats."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

PLUGINS: Final = (
    DialectPlugin(
        name="torchserve",
        target="backline.plugins.dialects.torchserve.service:TorchServeDialect",
        summary="TorchServe's APIs, for model archives and all other models",
        routes=(
            "GET /ping",
            "OPTIONS /",
            "GET /api-description",
            "GET /models",
            "POST /models",
            *(
                f"{method} /models/{{}}{version}"
                for version in ("", "/{}")
                for method in ("GET", "PUT", "DELETE")
            ),
            "PUT /models/{}/{}/set-default",
            *(
                f"{method} /{task}/{{}}{version}"
                for task in ("predictions", "explanations")
                for version in ("", "/{}")
                for method in ("POST", "PUT")
            ),
        ),
        services=(
            "org.pytorch.serve.grpc.inference.InferenceAPIsService",
            "org.pytorch.serve.grpc.management.ManagementAPIsService",
        ),
        page="docs/torchserve.md",
    ),
)
