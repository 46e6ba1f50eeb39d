"""TensorFlow Serving's REST and gRPC APIs, and version 1 of KServe's protocol, with the same REST routes."""

from __future__ import annotations

from typing import Final

from backline.dialects.plugin import DialectPlugin

_MODELS: Final = ("/v1/models/{}", "/v1/models/{}/versions/{}", "/v1/models/{}/labels/{}")

PLUGINS: Final = (
    DialectPlugin(
        name="tensorflow-serving",
        target="backline.plugins.dialects.tensorflow_serving.service:TensorFlowServing",
        summary="TensorFlow Serving's REST and gRPC APIs, and KServe's protocol version 1",
        routes=(
            "GET /v1/models",
            *(f"GET {model}{end}" for model in _MODELS for end in ("", "/metadata")),
            *(f"POST {model}:{verb}" for model in _MODELS for verb in ("predict", "explain")),
        ),
        shared=("GET /v1/models", "GET /v1/models/{}"),
        services=("tensorflow.serving.PredictionService", "tensorflow.serving.ModelService"),
        page="docs/moving-from/tensorflow-serving.md",
    ),
)
