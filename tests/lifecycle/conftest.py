"""An engine that serves models from folders, with the options that a test needs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backline.backends.registry import FORMATS
from backline.engine.engine import Engine
from backline.lifecycle.journal import LoadEvent
from backline.lifecycle.lifecycle import Lifecycle
from backline.lifecycle.options import LifecycleOptions
from backline.repository.local import LocalRepository
from backline_client.values.control import Change
from backline_client.values.datatypes import DataType
from backline_client.values.messages import InferRequest
from backline_client.values.tensor import Tensor


class Home:
    """An engine over a test's repositories; its state folder is next to the first."""

    def __init__(self, *repositories: Path, **options: Any) -> None:
        self.engine = Engine()
        self.events: list[LoadEvent] = []
        opened = [LocalRepository(path, formats=FORMATS) for path in repositories]
        options.setdefault("state_folder", repositories[0].parent / "state")
        options.setdefault("isolate", "never")  # a process for each trial would take most of a test's time
        self.lifecycle = Lifecycle(self.engine, opened, LifecycleOptions(**options))

    async def __aenter__(self) -> Home:
        await self.lifecycle.start(self.events.append)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.lifecycle.close()

    async def answer(self, model: str = "add1", version: str = "") -> float:
        """The model's answer to 0: the constant that it adds."""
        data = np.zeros((1, 16), np.float32)
        inputs = {"INPUT0": Tensor("INPUT0", DataType.FP32, data.shape, data)}
        response = await self.engine.infer(InferRequest(model, inputs, model_version=version))
        return float(response.outputs[0].data[0, 0])

    async def history(self, model: str = "") -> list[Change]:
        """The latest changes to a model, newest first."""
        return await self.lifecycle.history(model, form=lambda page: list(page.entries))

    def states(self, model: str = "add1") -> dict[str, str]:
        """The states of the listed versions."""
        return {one.version: one.state.value for one in self.engine.models() if one.name == model}

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits until a condition holds, checked at each change of the engine."""
        changed = asyncio.Event()
        stop = self.engine.watch(changed.set)
        try:
            while not reached():
                changed.clear()
                await asyncio.wait_for(changed.wait(), 10)
        finally:
            stop()


@pytest.fixture
def home() -> type[Home]:
    return Home


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    return folder
