"""Trees of XGBoost, LightGBM and CatBoost."""

from __future__ import annotations

from typing import Final

from backline.backends.plugin import BackendPlugin
from backline.engine.config.model_config import ModelFormat

PLUGINS: Final = (
    BackendPlugin(
        name="xgboost",
        platform="xgboost",
        target="backline.plugins.runtimes.trees.xgboost:XgBoost",
        formats=(
            ModelFormat("xgboost", ("model.ubj", "model.json", "xgboost.ubj", "xgboost.json"), (".ubj",)),
        ),
        runtime="XGBoost",
        package="xgboost",
        imports=("xgboost",),
        extra="xgboost",
        page="docs/backends.md",
    ),
    BackendPlugin(
        name="lightgbm",
        platform="lightgbm",
        target="backline.plugins.runtimes.trees.lightgbm:LightGbm",
        formats=(ModelFormat("lightgbm", ("model.txt", "lightgbm.txt")),),
        runtime="LightGBM",
        package="lightgbm",
        imports=("lightgbm",),
        extra="lightgbm",
        page="docs/backends.md",
    ),
    BackendPlugin(
        name="catboost",
        platform="catboost",
        target="backline.plugins.runtimes.trees.catboost:CatBoost",
        formats=(ModelFormat("catboost", ("model.cbm",), (".cbm",)),),
        runtime="CatBoost",
        package="catboost",
        imports=("catboost",),
        extra="catboost",
        page="docs/backends.md",
    ),
)
