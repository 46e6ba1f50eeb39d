"""The options in an inproc URL: inproc:///path/to/models?model=add1&memory_budget=2GiB."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from backline.engine.byte_size import parse_bytes
from backline.engine.errors import InvalidArgument
from backline.engine.spelling import nearest
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.schedule.cache.config import parse_cache_config

#: The key that names a model to load; it can be repeated.
_MODEL = "model"


def _boolean(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("expected true or false")
    return text == "true"


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise ValueError("expected a whole number")
    return int(text)


#: How each option is read. The other fields of LifecycleOptions make no sense inside a program or cannot be
#: written in a URL.
_READ: Mapping[str, Callable[[str], Any]] = {
    "namespacing": _boolean,
    "complete_configs": _boolean,
    "load_threads": _whole,
    "load_retries": _whole,
    "drain_seconds": float,
    "trust_pickle": _boolean,
    "trust_remote_code": _boolean,
    "strict_devices": _boolean,
    "memory_budget": parse_bytes,
    "max_queued_requests": _whole,
    "compute_threads": _whole,
    "response_cache": lambda text: parse_cache_config([text]),
    "cache_folder": Path,
    "state_folder": Path,
}


def read_options(query: str) -> LifecycleOptions:
    """Returns the options in the query of an inproc URL. By default, all models are loaded.

    The options let the program load and unload models. Raises InvalidArgument for an unknown option or an
    invalid value.
    """
    models: list[str] = []
    given: dict[str, Any] = {}
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name == _MODEL:
            models.append(text)
            continue
        if name not in _READ:
            near = nearest(name, (_MODEL, *_READ), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"expected one of {', '.join((_MODEL, *_READ))}"
            raise InvalidArgument(f"an inproc URL has no option '{name}'; {hint}")
        try:
            given[name] = _READ[name](text)
        except ValueError as error:
            raise InvalidArgument(f"{name}={text} in an inproc URL: {error}") from None
    return LifecycleOptions(mode="explicit", load_models=tuple(models) or (ALL_MODELS,), **given)
