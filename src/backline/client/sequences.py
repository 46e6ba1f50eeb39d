"""A sequence of requests to a model that keeps a state from one to the next."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backline.client.result import InferResult
from backline.engine.errors import BacklineError, InvalidArgument

if TYPE_CHECKING:
    from backline.client.aio import AsyncModel
    from backline.client.sync import Model


class _Progress:
    """Where a sequence is: its id, whether it has begun and ended, and what was sent last."""

    def __init__(self, model: str, id: int | str | None) -> None:
        if id is not None and not id:
            raise InvalidArgument("the id of a sequence is 0 or empty")
        self._model = model
        #: A number of 63 bits by chance when none was given: signed inputs of models hold it too.
        self.id: int | str = secrets.randbits(62) + 1 if id is None else id
        self._begun = False
        self._ended = False
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def _next(self, inputs: tuple[Any, ...], options: dict[str, Any], *, end: bool) -> dict[str, Any]:
        """The options of the next call."""
        if self._ended:
            raise InvalidArgument(f"sequence {self.id} of model '{self._model}' has ended")
        given: Mapping[str, Any] = options.pop("parameters", None) or {}
        parameters = {**given, "sequence_id": self.id, "sequence_start": not self._begun, "sequence_end": end}
        self._last = (inputs, {**options, "parameters": given})
        return {**options, "parameters": parameters}

    def _answered(self, *, end: bool) -> None:
        self._begun = True
        self._ended = self._ended or end

    def _closing(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """What to call the model with to end the sequence; None when it need not be ended."""
        return self._last if self._begun and not self._ended else None


class AsyncSequence(_Progress):
    """Call it like its model, one call after the other, and with `end=True` for the last one if you know that it is.

    Leaving its block ends the sequence: where no call has said so, the last inputs are sent once more with the end, for no answer. A call
    that fails does not move the sequence on.
    """

    def __init__(self, model: AsyncModel, id: int | str | None = None) -> None:
        super().__init__(model.name, id)
        self._call = model

    async def __call__(self, *inputs: Any, end: bool = False, **options: Any) -> InferResult:
        """The next request of the sequence. Raises BacklineError."""
        result = await self._call(*inputs, **self._next(inputs, options, end=end))
        self._answered(end=end)
        return result

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        last = self._closing()
        if last is not None:
            try:
                await self(*last[0], end=True, **last[1])
            except BacklineError:
                self._ended = True  # the server ends it by itself when nothing more comes


class RequestSequence(_Progress):
    """As AsyncSequence, without waiting for."""

    def __init__(self, model: Model, id: int | str | None = None) -> None:
        super().__init__(model.name, id)
        self._call = model

    def __call__(self, *inputs: Any, end: bool = False, **options: Any) -> InferResult:
        """The next request of the sequence. Raises BacklineError."""
        result = self._call(*inputs, **self._next(inputs, options, end=end))
        self._answered(end=end)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        last = self._closing()
        if last is not None:
            try:
                self(*last[0], end=True, **last[1])
            except BacklineError:
                self._ended = True
