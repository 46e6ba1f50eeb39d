"""Repositories on the Hugging Face hub."""

from __future__ import annotations

from typing import Final

from backline.repository.plugin import RepositoryPlugin

PLUGINS: Final = (
    RepositoryPlugin(
        name="hugging-face",
        summary="repositories on the Hugging Face hub",
        target="backline.plugins.repositories.hugging_face.hub_files:hub_files",
        schemes=("hf",),
        aliases={"huggingface": "hf"},
        slashless=True,
        page="docs/repositories.md",
    ),
)
