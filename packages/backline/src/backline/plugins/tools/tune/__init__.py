"""The best settings of a model on a machine."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="tune",
        summary="Search for the best settings of a model on this machine.",
        group="Watch and measure",
        target="backline.plugins.tools.tune.command:command",
        function="backline.plugins.tools.tune.tuning:tune",
        page="docs/tuning.md",
    ),
)
