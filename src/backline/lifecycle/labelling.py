"""Sets, moves and removes labels on request. Labels are stored on disk, and only move to ready versions."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace

from backline.engine.control import ANY_VERSION, Change, LabelMove
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, NotFound, Unavailable
from backline.engine.names import LONGEST_NAME, fault_in_name
from backline.lifecycle.audit_log import AuditLog
from backline.lifecycle.executor import Executor
from backline.lifecycle.journal import Journal
from backline.lifecycle.records import LabelStore
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.wanted import Source, Target, listed


class Labelling:
    """The labels of all models, from requests and configurations.

    The version that a label leaves stays loaded for `keep_seconds`, so that a rollback needs no load. `check`
    raises if this server does not allow changes of labels, `changing` locks a model for a change, and
    `versions_now` returns the versions that a label may point to.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        store: LabelStore,
        audit: AuditLog,
        journal: Journal,
        *,
        keep_seconds: float,
        check: Callable[[], None],
        changing: Callable[[str], AbstractAsyncContextManager[None]],
        versions_now: Callable[[ServedModel, str], Awaitable[Sequence[str]]],
    ) -> None:
        self._engine = engine
        self._executor = executor
        self._store = store
        self._audit = audit
        self._keep_seconds = keep_seconds
        self._check = check
        self._changing = changing
        self._versions_now = versions_now
        self._journal = journal
        self._storing = asyncio.Lock()

    def in_force(self, source: Source) -> Mapping[str, str]:
        """The labels of a model: those of its configuration, overridden by those set by request."""
        return {**source.found.config.labels, **self._store.of(source.name)}

    async def move(self, move: LabelMove, who: str) -> Change:
        """Moves a label, as Control.move_label says. Raises BacklineError if nothing was changed."""
        self._check()
        if move.action == "unlabel":
            return await self._remove(move, who)
        if move.action == "rollback":
            move = await self._back(move)
        return await self._point(move, who)

    async def _back(self, move: LabelMove) -> LabelMove:
        """Fills in a rollback: the version to return to, and the version that the label must still have."""
        model, label = move.model, move.label
        served, _ = self._labelled(model)
        now = served.labels.get(label, "")
        history = await asyncio.to_thread(self._audit.history, model, 10_000)
        version = earlier_version(history, label, now)
        if not version:
            raise InvalidArgument(
                f"label '{label}' of '{model}' has no earlier version, so it cannot be rolled back; point it"
                " to a version, or remove it"
            )
        return replace(move, version=version, expected=now)

    async def _point(self, move: LabelMove, who: str) -> Change:
        """Points a label to a version, loading it first if necessary."""
        model, label, version = move.model, move.label, move.version
        async with self._changing(model):
            served, target = self._labelled(model)
            self._check_label(label, target.source.versions)
            self._check_expected(served, move)
            versions = await self._versions_now(served, version)
            if version not in versions and served.ready(version) is None:
                raise NotFound(
                    f"label '{label}' cannot point to version {version[:LONGEST_NAME]} of '{model}', which"
                    f" does not exist; available: {listed(versions)}"
                )
            added = await self._executor.changes.bring_up(served, version)
            try:
                # Checked again: the label may have moved during the load, which can take minutes.
                self._check_expected(served, move)
                async with self._storing:
                    await asyncio.to_thread(self._store.set, model, label, version)
                before = served.labels.get(label, "")
                served.labels = {**served.labels, label: version}
                self._keep_previous(served, label, before, move.action)
            finally:
                # If the label was moved, it alone now keeps the version loaded; otherwise nothing does.
                if added and served.target is not None:
                    served.target = replace(served.target, added=served.target.added - {version})
                self._executor.advance((model,))
            return self._journal.note(move.action, who, model, version, label=label, before=before)

    def _keep_previous(self, served: ServedModel, label: str, version: str, action: str) -> None:
        """Keeps the version that a label leaves loaded for a while.

        No version is kept after a rollback, because the one that the label leaves is probably bad.
        """
        served.kept.forget(label)
        if version and action != "rollback" and self._keep_seconds:
            served.kept.keep(label, version, self._keep_seconds, lambda: self._executor.advance_known(served))

    async def _remove(self, move: LabelMove, who: str) -> Change:
        """Removes a label set by request; a label of that name in the configuration applies again."""
        model, label = move.model, move.label
        async with self._changing(model):
            served, target = self._labelled(model)
            if label not in served.labels:
                raise NotFound(
                    f"'{model}' has no label '{label}'; available: {listed(sorted(served.labels))}"
                )
            self._check_expected(served, move)
            configured = target.source.found.config.labels.get(label, "")
            if label not in self._store.of(model):
                source = target.source.found.config.source
                raise InvalidArgument(
                    f"label '{label}' of '{model}' is given by its configuration: remove it there ({source})"
                )
            async with self._storing:
                await asyncio.to_thread(self._store.remove, model, label)
            before = served.labels[label]
            served.labels = self.in_force(target.source)
            self._executor.advance((model,))
            return self._journal.note("unlabel", who, model, configured, label=label, before=before)

    def _labelled(self, model: str) -> tuple[ServedModel, Target]:
        served = self._executor.models.find(model)
        if served is None or served.target is None:
            self._engine.find(model)  # raises for an unknown model
            raise Unavailable(
                f"model '{model}' is not loaded, so its labels cannot be changed; load it first"
            )
        return served, served.target

    def _check_label(self, label: str, versions: Sequence[str]) -> None:
        fault = fault_in_name(label)
        if fault:
            raise InvalidArgument(f"{label[:32]!r} cannot be a label: its name {fault}")
        if label in versions:
            raise InvalidArgument(f"'{label}' cannot be a label, as it is the name of a version")

    def _check_expected(self, served: ServedModel, move: LabelMove) -> None:
        now = served.labels.get(move.label, "")
        if move.expected not in (ANY_VERSION, now):
            found = f"points to version {now}" if now else "does not exist"
            wanted = f"to version {move.expected}" if move.expected else "to none"
            raise InvalidArgument(
                f"label '{move.label}' of '{served.name}' was expected to point {wanted}, but it {found};"
                " nothing was changed"
            )


def earlier_version(history: Iterable[Change], label: str, now: str) -> str:
    """The version that a rollback of a label leads to, "" if there is none; the label points to `now`.

    `history` has the changes of one model, newest first. A rollback undoes the last move that has not been
    undone, so that one rollback after the other goes back to the first version.
    """
    #: The versions that the label pointed to, without the moves that were undone.
    path: list[str] = []
    for change in reversed(list(history)):
        if change.label != label:
            continue
        if change.action == "rollback":
            while path and path[-1] != change.version:
                path.pop()
            path = path or [change.version]
        elif change.action in ("label", "promote", "unlabel"):
            for version in (change.before, change.version):
                if not path or path[-1] != version:
                    path.append(version)
    if path and path[-1] != now:  # the configuration moved the label, or somebody edited the stored labels
        return path[-1]
    return path[-2] if len(path) > 1 else ""
