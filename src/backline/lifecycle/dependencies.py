"""Which models call which others, according to the configurations of ensembles."""

from __future__ import annotations

from collections.abc import Iterator

from backline.engine.engine import Engine
from backline.engine.model_config import ModelConfig
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels


def composed_of(config: ModelConfig) -> frozenset[str]:
    """The names of the models that an ensemble calls; none for other models."""
    return config.ensemble.models if config.ensemble is not None else frozenset()


class Dependencies:
    """The dependencies between the models of a server. Lives on the event loop."""

    def __init__(self, engine: Engine, models: ServedModels) -> None:
        self._engine = engine
        self._models = models

    def asking(self, name: str) -> list[str]:
        """The wanted models that call this one, directly or through others."""
        targets = {served.name: served.target for served in self._models if served.target is not None}
        return [other for other, target in targets.items() if self._asks(target.source.config, name, set())]

    def needed(self) -> set[str]:
        """The models that wanted models call."""
        return {
            name
            for served in self._models
            if served.target
            for name in composed_of(served.target.source.config)
        }

    def is_waiting(self, config: ModelConfig) -> bool:
        """Whether a model must wait for loads of models that it calls."""
        if config.ensemble is None:
            return False
        from backline.lifecycle.calls.ensemble_steps import unanswered_step

        if not unanswered_step(self._engine, config) or self._asks(config, config.name, set()):
            return False
        steps = (self._models.find(name) for name in config.ensemble.models)
        return any(step is not None and not step.settled for step in steps)

    def review(self) -> Iterator[ServedModel]:
        """Takes ensembles out of service with the models they call, and brings them back; yields those that
        need steps.

        Repeats until nothing changes, because ensembles call each other.
        """
        changed = True
        while changed:
            changed = False
            for served in self._models:
                for one in tuple(served.held.values()):
                    if one.review():
                        changed = True
                        if one.phase is VersionPhase.FAILED and one.may_come_back:
                            del served.held[one.key]
                        yield served

    def _asks(self, config: ModelConfig, name: str, seen: set[str]) -> bool:
        """Whether a model calls another, directly or through others."""
        for asked in composed_of(config) - seen:
            seen.add(asked)
            served = self._models.find(asked)
            target = served.target if served is not None else None
            if asked == name or (target is not None and self._asks(target.source.config, name, seen)):
                return True
        return False
