"""Where in a trace a request stands."""

from __future__ import annotations


class InferenceTrace:
    """The trace that a request belongs to: a model hands it on to the models that it asks."""

    __slots__ = ()

    def get_context(self) -> str | None:
        """The OpenTelemetry context as JSON; None, as this server traces nothing inside of models."""
        return None
