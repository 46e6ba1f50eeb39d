"""A repository on local disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from backline.engine.errors import Unavailable
from backline.engine.model_format import ModelFormat
from backline.repository.repository import FetchedVersion, FoundModel, FoundVersion, OnBytes
from backline.repository.scan import scan_listing
from backline.repository.walk import identity, walk


class LocalRepository:
    """The models in a folder; see Repository. `name` is that of the only model, where the folder's name is not to be it."""

    def __init__(self, path: Path, *, formats: Sequence[ModelFormat], config_name: str = "", name: str = "") -> None:
        self._path = path
        self._formats = tuple(formats)
        self._config_name = config_name
        self._name = name

    @property
    def location(self) -> str:
        return str(self._path)

    async def scan(self) -> list[FoundModel]:
        return await asyncio.to_thread(self._scan)

    def _scan(self) -> list[FoundModel]:
        return scan_listing(walk(self._path), formats=self._formats, name=self._name, config_name=self._config_name)

    async def fetch(self, model: FoundModel, version: FoundVersion, on_bytes: OnBytes) -> FetchedVersion:
        """The files where they are. Raises Unavailable when they are no longer those that the scan saw."""
        fetched = await asyncio.to_thread(self._check, model, version)
        total = sum(entry.size for entry in version.files.values())
        on_bytes(total, total)
        return fetched

    def _check(self, model: FoundModel, version: FoundVersion) -> FetchedVersion:
        root = self._path.resolve()
        for path, entry in version.files.items():
            try:
                now = identity((root / path).stat())
            except OSError:
                now = ""
            if now != entry.identity:
                raise Unavailable(f"'{root / path}' changed while it was being loaded; try again when it is complete", retry_after=1)
        assert version.path is not None, "a version without a problem has a path"
        return FetchedVersion(root / version.path, root / model.folder)

    async def changes(self, interval: float) -> AsyncIterator[None]:
        while True:
            await asyncio.sleep(interval)
            yield

    async def close(self) -> None:
        """Nothing is held."""
