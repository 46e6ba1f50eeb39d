"""Changes of labels, for tests."""

from __future__ import annotations

from backline_client.values.control import Action, Change


def move(label: str, before: str, after: str, *, model: str = "m", action: Action = "label") -> Change:
    return Change(0.0, "Ada", action, model, after, label, before)
