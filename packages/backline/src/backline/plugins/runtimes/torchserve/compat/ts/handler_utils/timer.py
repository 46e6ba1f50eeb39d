"""Measures the duration of a handler's steps, if its model-config.yaml enables this."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any


def timed(step: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a step of a handler. If model-config.yaml has `handler: {profile: true}`, the duration of
    each call is recorded in ms as the metric `ts_handler_<step>`.
    """

    @wraps(step)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        settings = self.context.model_yaml_config.get("handler") if self.context else None
        if not (isinstance(settings, dict) and settings.get("profile")):
            return step(self, *args, **kwargs)
        began = time.perf_counter()
        result = step(self, *args, **kwargs)
        self.context.metrics.add_time(f"ts_handler_{step.__name__}", (time.perf_counter() - began) * 1000)
        return result

    return run
