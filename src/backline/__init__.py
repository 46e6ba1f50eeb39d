"""Backline: a model server. Embed it, run it, or connect to it: the same models, one URL apart."""

from __future__ import annotations

__version__ = "0.1.0"
