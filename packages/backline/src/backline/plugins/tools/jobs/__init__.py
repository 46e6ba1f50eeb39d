"""The record of the command `backline jobs`."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="jobs",
        summary="List, wait for, fetch, cancel and retry jobs.",
        group="Use models",
        target="backline.plugins.tools.jobs.command:command",
        page="docs/jobs.md",
    ),
)
