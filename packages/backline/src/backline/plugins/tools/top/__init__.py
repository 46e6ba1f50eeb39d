"""What the models on a server are doing now."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="top",
        summary="Show what the models on a server are doing now.",
        group="Watch and measure",
        target="backline.plugins.tools.top.command:command",
        page="docs/operations.md",
    ),
)
