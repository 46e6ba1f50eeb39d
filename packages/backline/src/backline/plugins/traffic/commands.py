"""The record of the command `backline traffic`."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="traffic",
        summary="Show and change how routes spread requests over versions.",
        group="Use models",
        target="backline.plugins.traffic.command:command",
        page="docs/traffic.md",
    ),
)
