"""What is wrong with a machine, its models, or a running server."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="doctor",
        summary="Find out what is wrong with a machine, with models or with a server.",
        group="Watch and measure",
        target="backline.plugins.tools.doctor.command:command",
        function="backline.plugins.tools.doctor.examination:doctor",
        page="docs/doctor.md",
    ),
)
