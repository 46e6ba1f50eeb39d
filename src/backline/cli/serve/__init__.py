"""`backline serve`."""

from __future__ import annotations

from backline.cli.serve.serve import command

__all__ = ["command"]
