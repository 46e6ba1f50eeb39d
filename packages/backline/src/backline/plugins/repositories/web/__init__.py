"""Archives and model files on web servers."""

from __future__ import annotations

from typing import Final

from backline.repository.plugin import RepositoryPlugin

PLUGINS: Final = (
    RepositoryPlugin(
        name="web",
        summary="archives and model files on web servers",
        target="backline.plugins.repositories.web.archive:web_files",
        schemes=("http", "https"),
        nested=True,
        page="docs/repositories.md",
    ),
)
