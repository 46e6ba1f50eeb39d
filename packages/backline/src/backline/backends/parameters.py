"""Reads a backend's options from the `parameters` of a model's configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from backline.engine.config.model_config import ModelConfig
from backline.engine.numbers import parse_whole
from backline_client.values.errors import InvalidArgument
from backline_client.values.spelling import nearest

_FLAGS = {"0": False, "1": True, "false": False, "true": True}
MAX_THREADS = 1024


class Parameters:
    """A model's parameters. Methods raise InvalidArgument for invalid values; unknown keys cause warnings."""

    def __init__(self, config: ModelConfig, backend: str, known: Sequence[str]) -> None:
        self._model = config.name
        self._given = config.parameters
        self.warnings = tuple(
            unknown_parameter(config.name, backend, key, known)
            for key in config.parameters
            if key not in known
        )

    def text(self, key: str, default: str = "") -> str:
        return self._given.get(key, default)

    def number(self, key: str, default: int, most: int, what: str, *, least: int = 1) -> int:
        """Reads a whole number. `what` names the number in the error, such as "a number of threads"."""
        if key not in self._given:
            return default
        number = parse_whole(self._given[key].strip(), least, most)
        if number is None:
            raise self._error(key, f"{what} from {least} to {most}")
        return number

    def threads(self, key: str, default: int) -> int:
        """Reads a number of threads, from 1 to MAX_THREADS."""
        return self.number(key, default, MAX_THREADS, "a number of threads")

    def flag(self, key: str, default: bool) -> bool:
        if key not in self._given:
            return default
        try:
            return _FLAGS[self._given[key].strip().lower()]
        except KeyError:
            raise self._error(key, "true or false") from None

    def choice(self, key: str, default: str, choices: Mapping[str, str] | Sequence[str]) -> str:
        if key not in self._given:
            return default
        text = self._given[key].strip()
        if text not in choices:
            raise self._error(key, f"one of {', '.join(choices)}")
        return choices[text] if isinstance(choices, Mapping) else text

    def _error(self, key: str, expected: str) -> InvalidArgument:
        return InvalidArgument(
            f"parameter '{key}' of model '{self._model}' is '{self._given[key]}', expected {expected}"
        )


def unknown_parameter(model: str, backend: str, key: str, known: Sequence[str]) -> str:
    """Returns the warning about a parameter that a backend does not know."""
    near = nearest(key, known, 1)
    hint = f", did you mean '{near[0]}'?" if near else ""
    return (
        f"parameter '{key}' of model '{model}' is not known to the {backend} backend and has no effect{hint}"
    )
