"""Container images for the models of a repository."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="image",
        summary="Build a container image for the models of a repository.",
        group="Prepare models and servers",
        target="backline.plugins.tools.image.command:command",
        page="docs/deploy/container.md",
    ),
)
