"""`backline bench`."""

from __future__ import annotations

from backline.cli.bench.bench import command

__all__ = ["command"]
