"""A Control that changes an engine's models in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline_client.values.control import (
    ANY_VERSION,
    Action,
    Attempt,
    Change,
    Entry,
    LabelMove,
    MayChange,
    Overrides,
    Page,
    RepositoryState,
    Result,
    may_change_all,
)
from backline_client.values.errors import AlreadyExists, InvalidArgument


class FakeControl:
    """Loads models that the engine already knows. Records `calls`; loads wait while `gate` is cleared."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.calls: list[tuple[object, ...]] = []
        self.changes: list[Change] = []
        self.attempts: list[Attempt] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    async def load(
        self,
        model: str,
        version: str = "",
        *,
        overrides: Overrides | None = None,
        who: str,
        caller: str = "",
        may_change: MayChange = may_change_all,
    ) -> None:
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        self.engine.find(model, version).state = ModelState.READY
        self.engine.refresh()
        self.calls.append(("load", model, version, overrides))
        self._note("load", model, version, who)

    async def unload(
        self,
        model: str,
        version: str = "",
        *,
        dependents: bool = False,
        who: str,
        may_change: MayChange = may_change_all,
    ) -> None:
        await self.gate.wait()
        self.engine.find(model, version).state = ModelState.UNAVAILABLE
        self.engine.refresh()
        self.calls.append(("unload", model, version, dependents))
        self._note("unload", model, version, who)

    async def move_label(self, move: LabelMove, *, who: str) -> Change:
        model, label, version, expected = move.model, move.label, move.version, move.expected
        if version:
            self.engine.find(model, version)
        if move.action == "rollback":
            moves = [change for change in self.changes if (change.model, change.label) == (model, label)]
            if not moves:
                raise InvalidArgument(f"label '{label}' of model '{model}' was never moved")
            version = moves[-1].before
        return self._move(model, label, version, expected, who)

    def check_changeable(self, what: str) -> None:
        """Allows every change."""

    async def refresh(self) -> None:
        self.calls.append(("refresh",))

    def repositories(self) -> Sequence[RepositoryState]:
        return [RepositoryState("/models", "explicit", models=self.engine.names(), scanned=1764000000.0)]

    def worker_pids(self) -> Sequence[int]:
        return ()

    def labels(self, model: str) -> Mapping[str, str]:
        return self.engine.labels(model)

    def note(self, attempt: Attempt) -> None:
        self.attempts.append(attempt)

    async def audit(
        self,
        limit: int = 100,
        after: float = 0.0,
        cursor: str = "",
        *,
        form: Callable[[Page[Change | Attempt]], Result],
    ) -> Result:
        return form(_page([one for one in reversed(self.attempts) if one.time > after], limit, cursor))

    async def history(
        self, model: str = "", limit: int = 100, cursor: str = "", *, form: Callable[[Page[Change]], Result]
    ) -> Result:
        return form(_page([one for one in reversed(self.changes) if model in ("", one.model)], limit, cursor))

    def _move(self, model: str, label: str, version: str, expected: str, who: str) -> Change:
        labels = dict(self.engine.labels(model))
        before = labels.pop(label, "")
        if expected not in (ANY_VERSION, before):
            raise AlreadyExists(
                f"label '{label}' of model '{model}' points to {before or 'nothing'}, not to {expected}"
            )
        if version:
            labels[label] = version
        self.engine.set_labels(model, labels)
        self.engine.refresh()
        return self._note("label" if version else "unlabel", model, version, who, label, before)

    def _note(
        self, action: Action, model: str, version: str, who: str, label: str = "", before: str = ""
    ) -> Change:
        change = Change(1764000000.0 + len(self.changes), who, action, model, version, label, before)
        self.changes.append(change)
        return change


def _page(entries: Sequence[Entry], limit: int, cursor: str) -> Page[Entry]:
    begin = int(cursor or 0)
    end = begin + limit
    return Page(entries[begin:end], str(end) if end < len(entries) else "")
