"""Estimators of scikit-learn, in the formats of skops and joblib."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="sklearn",
        platform="sklearn",
        target="backline.plugins.runtimes.sklearn.runtime:Sklearn",
        formats=(
            ModelFormat(
                "sklearn",
                ("model.skops", "model.joblib", "model.pkl"),
                (".skops", ".joblib", ".pkl", ".pickle"),
            ),
        ),
        runtime="scikit-learn",
        package="scikit-learn",
        imports=("skops.io", "joblib"),
        extra="sklearn",
        page="docs/backends.md",
    ),
)
