"""Sequences of requests to a model that keeps state between them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from backline_client.client.result import InferResult
from backline_client.values.errors import BacklineError, InvalidArgument

if TYPE_CHECKING:
    from backline_client.client.aio import AsyncModel
    from backline_client.client.sync import Model


class _Progress:
    """The id of a sequence, whether the sequence has begun and ended, and its last successful call."""

    def __init__(self, model: str, id: int | str | None) -> None:
        if id is not None and not id:
            raise InvalidArgument("the id of a sequence must not be 0 or empty")
        self._model = model
        #: By default a random number below 2**63, so that signed 64-bit model inputs can hold it.
        self.id: int | str = secrets.randbits(62) + 1 if id is None else id
        self._begun = False
        self._ended = False
        self._last: tuple[tuple[Any, ...], dict[str, Any]] | None = None

    def _next(self, options: dict[str, Any], *, end: bool) -> dict[str, Any]:
        """Returns the options of the next call, including the parameters that make the call part of the
        sequence.
        """
        if self._ended:
            raise InvalidArgument(f"sequence {self.id} of model '{self._model}' has ended; begin another one")
        given: Mapping[str, Any] = options.get("parameters") or {}
        parameters = {**given, "sequence_id": self.id, "sequence_start": not self._begun, "sequence_end": end}
        return {**options, "parameters": parameters}

    def _answered(self, inputs: tuple[Any, ...], options: dict[str, Any], *, end: bool) -> None:
        self._last = (inputs, options)
        self._begun = True
        self._ended = self._ended or end

    def _closing(self) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Returns the inputs and options of a call that ends the sequence; None if no such call is needed."""
        return self._last if self._begun and not self._ended else None


class AsyncSequence(_Progress):
    """A sequence of calls to a model. Call the object as you would call the model, but one call at a time.

    Pass `end=True` with the last call if you know that it is the last. Otherwise, the end of the `async with`
    block ends the sequence, by sending the inputs of the last successful call again, marked as the end, and
    dropping the result. A failed call does not advance the sequence.
    """

    def __init__(self, model: AsyncModel, id: int | str | None = None) -> None:
        super().__init__(model.name, id)
        self._call = model

    async def __call__(self, *inputs: Any, end: bool = False, **options: Any) -> InferResult:
        """Sends the next request of the sequence. Raises BacklineError."""
        result = await self._call(*inputs, **self._next(options, end=end))
        self._answered(inputs, options, end=end)
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
                self._ended = True  # the server will end the idle sequence


class RequestSequence(_Progress):
    """The synchronous form of AsyncSequence, for use in a `with` block."""

    def __init__(self, model: Model, id: int | str | None = None) -> None:
        super().__init__(model.name, id)
        self._call = model

    def __call__(self, *inputs: Any, end: bool = False, **options: Any) -> InferResult:
        """Sends the next request of the sequence. Raises BacklineError."""
        result = self._call(*inputs, **self._next(options, end=end))
        self._answered(inputs, options, end=end)
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
