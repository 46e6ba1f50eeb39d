"""The seam between the client and what changes a server's models, whatever way it is reached."""

from __future__ import annotations

from abc import ABC, abstractmethod

from backline.client.records import ModelIndex
from backline.engine.control import Change, LabelMove, Overrides


class ModelControl(ABC):
    """The models of one server: what there is, and changes of it. `timeout` is in seconds; every method raises BacklineError.

    A change that takes longer than its timeout raises DeadlineExceeded, and goes on in the server.
    """

    @abstractmethod
    async def models(self, timeout: float) -> list[ModelIndex]:
        """All versions of all models, with everything that the server tells of them."""

    @abstractmethod
    async def load(self, model: str, version: str, overrides: Overrides | None, timeout: float) -> None: ...

    @abstractmethod
    async def unload(self, model: str, version: str, dependents: bool, timeout: float) -> None: ...

    @abstractmethod
    async def labels(self, model: str, timeout: float) -> dict[str, str]:
        """The labels of a model and the versions they point to."""

    @abstractmethod
    async def move_label(self, move: LabelMove, timeout: float) -> Change: ...

    @abstractmethod
    async def history(self, model: str, limit: int, timeout: float) -> list[Change]: ...

    @abstractmethod
    async def refresh(self, timeout: float) -> None: ...
