"""Sets, moves and removes labels on request. A label moves only to a ready version.

Servers that share their labels read the stored labels once a second, and so follow each other's changes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager

from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.lifecycle.executor import Executor
from backline.lifecycle.journal import Journal
from backline.lifecycle.labels.store import LabelStore
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.wanted import Source, Target, listed
from backline_client.values.control import ANY_VERSION, Change, LabelMove
from backline_client.values.errors import BacklineError, InvalidArgument, NotFound, Unavailable
from backline_client.values.names import LONGEST_NAME, fault_in_name

log = logging.getLogger("backline.lifecycle")

#: Seconds between two checks for labels that other servers have moved.
FOLLOW_SECONDS = 1.0
#: The maximum number of labels per model. Each change writes all labels of all models, so the number of
#: labels must be limited.
MOST_LABELS = 256


class Labelling:
    """The labels of all models, from requests and configurations.

    When a label moves, its previous version remains loaded for `keep_seconds`, so that a rollback needs no
    load. `check` raises if this server does not allow changes to labels, `changing` locks a model for a
    change, and `versions_now` returns the versions that a label may point to.
    """

    def __init__(
        self,
        engine: Engine,
        executor: Executor,
        store: LabelStore,
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
        self._keep_seconds = keep_seconds
        self._check = check
        self._changing = changing
        self._versions_now = versions_now
        self._journal = journal
        #: Held while the store reads or writes.
        self._storing = asyncio.Lock()
        #: The tasks that apply label moves of other servers on this server, by model.
        self._adopting: dict[str, asyncio.Task[None]] = {}
        #: The models for which such a task has failed. The moves of their labels are applied again later.
        self._behind: set[str] = set()
        self._following: asyncio.Task[None] | None = None

    def start(self, *, follow: bool) -> None:
        """Starts following the labels that other servers move, if `follow` is set. Even if the labels are not
        meant to be shared, another server may use the same state folder.
        """
        if self._store.unreachable:
            self._warn(self._store.unreachable)
        if follow:
            self._following = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        tasks = [*self._adopting.values(), *([self._following] if self._following else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def in_force(self, source: Source) -> Mapping[str, str]:
        """Returns the labels of a model: the labels in its configuration, overridden by the labels set by
        request.
        """
        return {**source.found.config.labels, **self._store.of(source.name)}

    async def move(self, move: LabelMove, who: str) -> Change:
        """Moves a label, as described for Control.move_label. Raises BacklineError if nothing was changed."""
        self._check()
        # The moves of other servers are applied first. They continue if this request is cancelled.
        await self._catch_up()
        if adopting := self._adopting.get(move.model):
            await asyncio.shield(adopting)
        if move.action == "unlabel":
            return await self._remove(move, who)
        if move.action == "rollback":
            move = await self._back(move)
        return await self._point(move, who)

    async def _back(self, move: LabelMove) -> LabelMove:
        """Turns a rollback into a move: fills in the version to which the label returns, and the version to
        which the label must still point when it is moved.
        """
        model, label = move.model, move.label
        served, _ = self._labelled(model)
        now = served.labels.wanted.get(label, "")
        version = earlier_version(self._store.history(model), label, now)
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
            stored = self._store.of(model).get(label, "")
            self._check_label(model, label, target.source.versions, served.labels.wanted)
            self._check_expected(target.source, move)
            versions = await self._versions_now(served, version)
            if version not in versions and served.ready(version) is None:
                raise NotFound(
                    f"label '{label}' cannot point to version {version[:LONGEST_NAME]} of '{model}', which"
                    f" does not exist; available: {listed(versions)}"
                )
            left_out = frozenset() if served.target is None else served.target.removed & {version}
            added = await self._executor.changes.bring_up(served, version)
            try:
                # This second check is necessary because the label may have moved during the load, which can
                # take minutes.
                self._check_expected(target.source, move)
                before = served.labels.wanted.get(label, "")
                change = Change(time.time(), who, move.action, model, version, label, before)
                await self._save(change, stored)
                served.labels.wanted = {**served.labels.wanted, label: version}
                self._keep_previous(served, label, before, move.action)
            finally:
                # Removes the version from the target again. If the label was moved, the version stays loaded
                # because of the label; otherwise it is unloaded.
                if added and served.target is not None:
                    served.target = replace(
                        served.target,
                        added=served.target.added - {version},
                        removed=served.target.removed | left_out,
                    )
                self._executor.advance((model,))
            self._journal.record(change)
            return change

    def _keep_previous(self, served: ServedModel, label: str, version: str, action: str) -> None:
        """Keeps a label's previous version loaded for a while.

        After a rollback, the version from which the label was moved back is not kept, because it is probably
        bad.
        """
        served.labels.kept.forget(label)
        if version and action != "rollback" and self._keep_seconds:
            served.labels.kept.keep(
                label, version, self._keep_seconds, lambda: self._executor.advance_known(served)
            )

    async def _remove(self, move: LabelMove, who: str) -> Change:
        """Removes a label set by request; a label of the same name in the configuration applies again."""
        model, label = move.model, move.label
        async with self._changing(model):
            served, target = self._labelled(model)
            if label not in served.labels.wanted:
                raise NotFound(
                    f"'{model}' has no label '{label}'; available: {listed(sorted(served.labels.wanted))}"
                )
            self._check_expected(target.source, move)
            configured = target.source.found.config.labels.get(label, "")
            stored = self._store.of(model).get(label, "")
            if not stored:
                source = target.source.found.config.source
                raise InvalidArgument(
                    f"label '{label}' of '{model}' is set in the model's configuration: remove it there"
                    f" ({source})"
                )
            change = Change(
                time.time(), who, "unlabel", model, configured, label, before=served.labels.wanted[label]
            )
            await self._save(change, stored)
            served.labels.wanted = self.in_force(target.source)
            self._executor.advance((model,))
            self._journal.record(change)
            return change

    async def _save(self, change: Change, expected: str) -> None:
        async with self._storing:
            await asyncio.to_thread(self._store.move, change, expected)

    async def _follow(self) -> None:
        """Applies the label moves of other servers, until cancelled. While the stored labels cannot be read,
        this server's labels do not change.
        """
        cut_off = self._store.unreachable
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            try:
                await self._catch_up()
            except BacklineError as error:
                if error.message != cut_off:
                    self._warn(error.message)
                cut_off = error.message
            else:
                if cut_off:
                    log.warning("the shared labels in %s can be read again", self._store.where)
                cut_off = ""

    def _warn(self, reason: str) -> None:
        log.warning(
            "the labels that this server shares with others cannot be read, so each label stays where it"
            " is: %s",
            reason,
        )

    async def _catch_up(self) -> None:
        """Reads the stored labels again. For each model whose labels other servers have moved, starts a task
        that applies the moves.
        """
        async with self._storing:
            moved = await asyncio.to_thread(self._store.refresh)
        behind, self._behind = self._behind, set()
        for model in moved | behind:
            earlier = self._adopting.get(model)
            task = asyncio.get_running_loop().create_task(self._adopt(model, earlier))
            self._adopting[model] = task
            task.add_done_callback(lambda done, model=model: self._adopted(model, done))  # type: ignore[misc]

    def _adopted(self, model: str, task: asyncio.Task[None]) -> None:
        if self._adopting.get(model) is task:
            del self._adopting[model]
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error(
                "the labels of model '%s' in %s cannot be applied on this server",
                model,
                self._store.where,
                exc_info=error,
            )

    async def _adopt(self, model: str, earlier: asyncio.Task[None] | None) -> None:
        """Points the labels of a model to the versions to which other servers have moved them.

        On this server, each label moves only once its version is loaded, and not at all if the load fails.
        """
        if earlier is not None:
            await asyncio.wait((earlier,))
        async with self._changing(model):
            served = self._executor.models.find(model)
            if served is None or served.target is None:
                return  # the model's next load applies the labels
            before, now = served.labels.wanted, self.in_force(served.target.source)
            moved = [label for label in {**before, **now} if before.get(label) != now.get(label)]
            changes = [self._last_change(model, label, before, now) for label in moved]
            try:
                for label in moved:
                    if label in now:
                        await self._versions_now(served, now[label])
            except BacklineError as error:
                log.warning(
                    "the labels of model '%s' are not applied on this server yet: %s", model, error.message
                )
                self._behind.add(model)
                return
            served.labels.wanted = now
            served.labels.arriving |= {label for label in moved if label not in before}
            for change in changes:
                self._keep_previous(served, change.label, change.before, change.action)
                if self._store.shared:  # otherwise, the other server's entry is in the same audit log
                    self._journal.record(change)
            self._executor.advance((model,))

    def _last_change(
        self, model: str, label: str, before: Mapping[str, str], now: Mapping[str, str]
    ) -> Change:
        """Returns the audit log's entry for a label that another server has moved."""
        was, version = before.get(label, ""), now.get(label, "")
        changes = (one for one in self._store.history(model) if one.label == label)
        last = next(changes, None) or Change(0.0, "unknown", "label" if version else "unlabel", model)
        taken = f"taken over from {self._store.where}"
        return replace(last, time=time.time(), label=label, version=version, before=was, detail=taken)

    def _labelled(self, model: str) -> tuple[ServedModel, Target]:
        served = self._executor.models.find(model)
        if served is None or served.target is None:
            self._engine.find(model)  # raises for an unknown model
            raise Unavailable(
                f"model '{model}' is not loaded, so its labels cannot be changed; load it first"
            )
        return served, served.target

    def _check_label(
        self, model: str, label: str, versions: Sequence[str], labels: Mapping[str, str]
    ) -> None:
        fault = fault_in_name(label)
        if fault:
            raise InvalidArgument(f"{label[:32]!r} cannot be a label: its name {fault}")
        if label in versions:
            raise InvalidArgument(f"'{label}' cannot be a label, as it is the name of a version")
        if label not in labels and len(labels) >= MOST_LABELS:
            raise InvalidArgument(
                f"label '{label}' cannot be added: '{model}' has {len(labels)} labels, and at most"
                f" {MOST_LABELS} are allowed; remove one first"
            )

    def _check_expected(self, source: Source, move: LabelMove) -> None:
        # Checks the stored labels, not the labels in use on this server, because this server may not have
        # applied the latest moves of other servers yet.
        now = self.in_force(source).get(move.label, "")
        if move.expected not in (ANY_VERSION, now):
            found = f"points to version {now}" if now else "does not exist"
            wanted = f"to version {move.expected}" if move.expected else "to no version"
            raise InvalidArgument(
                f"label '{move.label}' of '{source.name}' was expected to point {wanted}, but it {found};"
                " nothing was changed"
            )


def earlier_version(history: Iterable[Change], label: str, now: str) -> str:
    """Returns the version that a rollback of a label restores, or "" if there is none.

    `now` is the version to which the label points. `history` has the changes to the labels of one model,
    newest first. A rollback undoes the last move that has not been undone, so that repeated rollbacks lead
    back to the first version.
    """
    #: The versions that the label pointed to, oldest first, without those whose moves were undone.
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
