"""The throughput and latency of a model under load."""

from __future__ import annotations

from typing import Final

from backline.cli.commands import CommandPlugin

PLUGINS: Final = (
    CommandPlugin(
        name="bench",
        summary="Measure a model on a server under load.",
        group="Watch and measure",
        target="backline.plugins.tools.bench.command:command",
        function="backline.plugins.tools.bench.benchmark:bench",
        page="docs/tuning.md",
    ),
)
