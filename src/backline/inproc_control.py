"""Changes of the models of a repository inside this program: what the client asks goes straight to the engine's control."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import msgspec

from backline.client.control import ModelControl, user_name
from backline.client.errors import DeadlineExceeded
from backline.client.records import ModelIndex, complete_listing
from backline.dialects.open_inference.metadata import model_listing
from backline.engine.control import Change, Control, Overrides
from backline.engine.engine import Engine
from backline.engine.errors import Unsupported

Result = TypeVar("Result")


class InprocControl(ModelControl):
    """The control of an engine, on its event loop. What is changed goes on when a caller's time is over."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._who = f"{user_name()} (inproc)"

    @property
    def _control(self) -> Control:
        control = self._engine.control
        if control is None:
            raise Unsupported(
                "the models of this repository cannot be changed while it is open: it was opened without a control"
            )
        return control

    async def models(self, timeout: float) -> list[ModelIndex]:
        return complete_listing(
            self._engine.names(), msgspec.convert(model_listing(self._engine), list[ModelIndex])
        )

    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None:
        await _within(timeout, self._control.load(model, version, overrides=overrides, who=self._who))

    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None:
        await _within(timeout, self._control.unload(model, version, dependents=dependents, who=self._who))

    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        self._engine.check_known(model)
        return dict(self._engine.labels(model))

    async def set_label(self, model: str, label: str, version: str, expected: str, timeout: float) -> Change:
        return await _within(
            timeout, self._control.set_label(model, label, version, expected=expected, who=self._who)
        )

    async def remove_label(self, model: str, label: str, expected: str, timeout: float) -> Change:
        return await _within(
            timeout, self._control.remove_label(model, label, expected=expected, who=self._who)
        )

    async def promote(self, model: str, version: str, expected: str, timeout: float) -> Change:
        return await _within(timeout, self._control.promote(model, version, expected=expected, who=self._who))

    async def rollback(self, model: str, label: str, timeout: float) -> Change:
        return await _within(timeout, self._control.rollback(model, label=label, who=self._who))

    async def history(self, model: str, limit: int, timeout: float) -> list[Change]:
        return list(self._control.history(model, limit))

    async def refresh(self, timeout: float) -> None:
        await _within(timeout, self._control.refresh())


async def _within(timeout: float, change: Coroutine[Any, Any, Result]) -> Result:
    """The result of a change. Raises DeadlineExceeded when it takes longer; it is not cancelled then."""
    task = asyncio.ensure_future(change)
    done, _ = await asyncio.wait((task,), timeout=timeout)
    if not done:
        raise DeadlineExceeded(f"the change was not done within {timeout:.3g} s")
    return task.result()
