"""Stores the models of a server by name, and lets callers wait until models have reached a state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from backline.lifecycle.served_model import ServedModel
from backline_client.values.errors import Unavailable


class ServedModels:
    """The models that the executor brings to their targets, by name. Use it only on the event loop."""

    def __init__(
        self,
        *,
        strict_readiness: bool,
        require_all_versions: bool = False,
        control_as_triton: bool = False,
    ) -> None:
        self._strict_readiness = strict_readiness
        self._require_all_versions = require_all_versions
        self._control_as_triton = control_as_triton
        self._models: dict[str, ServedModel] = {}
        self._watchers: list[asyncio.Future[None]] = []
        self._closed = False

    def __getitem__(self, name: str) -> ServedModel:
        """Returns the model with this name. If there is none, creates one without a target first."""
        served = self._models.get(name)
        if served is None:
            served = self._models[name] = ServedModel(
                name,
                strict_readiness=self._strict_readiness,
                require_all_versions=self._require_all_versions,
                control_as_triton=self._control_as_triton,
            )
        return served

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(tuple(self._models.values()))

    def find(self, name: str) -> ServedModel | None:
        return self._models.get(name)

    @property
    def names(self) -> list[str]:
        return list(self._models)

    def forget(self, name: str) -> None:
        """Removes a model that is `gone`."""
        del self._models[name]

    def stepped(self) -> None:
        """Makes waiting calls of `until` check their conditions again; called after a step of any model."""
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Waits until `reached` returns true. Raises Unavailable if the server stops first."""
        while not reached():
            if self._closed:
                raise Unavailable("the server is stopping")
            watcher = asyncio.get_running_loop().create_future()
            self._watchers.append(watcher)
            await watcher

    async def settle(self, names: Iterable[str] | None = None) -> None:
        """Waits until no step of the models `names`, or of all models if None, is in progress or scheduled.
        Raises Unavailable if the server stops first.
        """
        for name in self.names if names is None else names:
            await self.until(partial(self._is_settled, name))

    def _is_settled(self, name: str) -> bool:
        return name not in self._models or self._models[name].settled

    def close(self) -> None:
        """Makes current and future waits raise Unavailable, because the server is stopping."""
        self._closed = True
        self.stepped()
