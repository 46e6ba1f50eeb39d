"""The versions of one model: which of them should be served, which are loaded, and what clients see of
each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Final

from msgspec.structs import replace

from backline.engine.engine import Engine
from backline.engine.model import NO_VERSION, ModelState
from backline.engine.statistics import ModelStatistics
from backline.lifecycle.model_labels import ModelLabels, files_gone_text, missing_text
from backline.lifecycle.phase import ShownVersion, StandIn, VersionPhase
from backline.lifecycle.plan import HeldVersion, Wanted, replacements
from backline.lifecycle.restated import InForce
from backline.lifecycle.servable import Servable
from backline.lifecycle.wanted import Target, identity
from backline.repository.repository import FoundVersion

#: Seconds for which an unloaded version is still listed if the version policy no longer selects it.
UNLOADED_SHOWN_SECONDS = 60.0
#: If a version has several loads, clients see the one whose phase is last here.
_SHOWN_LAST: Final = (
    VersionPhase.DRAINING,
    VersionPhase.FAILED,
    VersionPhase.LOADED,
    VersionPhase.LOADING,
    VersionPhase.READY,
)
#: Makes the placeholder for an on-demand version, given the version's name.
MakeAsleep = Callable[[str], StandIn]


class ServedModel:
    """One model: its target, its loads, and the versions that clients see.

    Code that changes a public attribute must then call `Executor.advance`, which acts on the change.
    """

    def __init__(
        self,
        name: str,
        *,
        strict_readiness: bool = True,
        require_all_versions: bool = False,
        control_as_triton: bool = False,
    ) -> None:
        self.name = name
        self._strict_readiness = strict_readiness
        self._require_all_versions = require_all_versions
        self._control_as_triton = control_as_triton
        #: The versions that should be served; None if the model should not be served.
        self.target: Target | None = None
        #: The target of a change in progress, which is reached completely or dropped; None without a change.
        self.change: Target | None = None
        self.labels = ModelLabels()
        self.held: dict[int, Servable] = {}
        #: The versions that the target selected at the last call of `follow_target`.
        self._selected: frozenset[str] = frozenset()
        #: A cache of one entry: the target for which goals were last computed, the labelled and the sleeping
        #: versions, and the goals.
        self._goals: tuple[Target | None, frozenset[str], frozenset[str], list[Wanted]] = (
            None,
            frozenset(),
            frozenset(),
            [],
        )
        self._replaced_by: Mapping[str, frozenset[str]] = {}
        #: The versions that the repository holds.
        self.known_versions: frozenset[str] = frozenset()
        #: On-demand versions that should be loaded, because an inference or load request needs them.
        self.awake: set[str] = set()
        #: Versions that are unloaded until a request needs them, each with the reason for its unload.
        self.resting: dict[str, str] = {}
        #: Versions that the last change failed to load, each with a placeholder that holds the reason.
        self.failures: dict[str, StandIn] = {}
        self._shown: dict[str, ShownVersion] = {}
        self._waiting: dict[str, StandIn] = {}
        #: Versions that are not served because another version failed to load, each with its placeholder.
        self._withheld: dict[str, StandIn] = {}
        self._asleep: dict[str, StandIn] = {}
        self._unloaded: dict[str, Servable] = {}

    def move_labels(self) -> None:
        """Points labels to the versions to which they should point; see ModelLabels.move."""
        self.labels.move(self._answers)

    def _answers(self, version: str) -> bool:
        return self.ready(version) is not None or version in self._asleep

    def follow_target(self) -> None:
        """Records which versions left the target since the last call, and which versions replace them."""
        target = self.target
        goals = [] if target is None else self._goals_of(target)
        selected = frozenset(goal.version for goal in goals)
        if selected == self._selected:
            return
        identities = {(goal.version, goal.fingerprint) for goal in goals}
        failed = {
            one.model.version
            for one in self.held.values()
            if one.phase is VersionPhase.FAILED and (one.model.version, one.fingerprint) in identities
        }
        asleep = frozenset() if target is None else self._sleeping(target)
        self._replaced_by = replacements(
            self._replaced_by,
            selected_before=self._selected - (frozenset() if target is None else target.removed),
            selected=selected - asleep,
            ready=self.ready_versions,
            failed=failed,
        )
        self._selected = selected

    def planned(self) -> list[HeldVersion]:
        """Returns the loads of this model, in the form that the planner needs."""
        nothing: frozenset[str] = frozenset()
        dismissed = nothing if self.target is None else self.target.removed
        return [
            one.held(
                self._replaced_by.get(one.model.version, nothing), dismissed=one.model.version in dismissed
            )
            for one in self.held.values()
        ]

    def wanted(self) -> list[Wanted]:
        """Returns the goals for the planner: the versions of the target, the versions of the change in
        progress, and further versions that labels point to or that are kept for a rollback.
        """
        goals: list[Wanted] = []
        if self.target is not None:
            labelled = self.labels.versions
            goals = list(self._goals_of(self.target, labelled, asleep=self._sleeping(self.target)))
            if self._require_all_versions:
                goals = self._all_or_none(goals, self.target)
            if labelled or self.labels.kept.versions:
                goals += self._kept(labelled - {goal.version for goal in goals})
                goals += self._kept(self.labels.kept.versions - {goal.version for goal in goals})
                config = self.target.source.config
                goals += [
                    Wanted(self.name, version.version, identity(version), config)
                    for version in self._missing({goal.version for goal in goals})
                ]
        if self.change is not None:
            present = {(goal.version, goal.fingerprint) for goal in goals}
            goals += [
                goal for goal in self._changed(self.change) if (goal.version, goal.fingerprint) not in present
            ]
        return goals

    def _all_or_none(self, goals: Sequence[Wanted], target: Target) -> list[Wanted]:
        """Returns the goals, changed so that no new version serves before all wanted versions are loaded.

        Until then, versions that already serve continue to do so.

        Once a load has failed and is not retried, the goals that `_in_vain` returns are dropped, which
        unloads their versions.
        """
        loaded = (VersionPhase.LOADED, VersionPhase.READY)
        phases = self._phases()
        if all(phases.get((goal.version, goal.fingerprint)) in loaded for goal in goals if goal.loaded):
            return list(goals)
        in_vain = self._in_vain(goals)
        pursued = [
            goal
            if not goal.loaded or phases.get((goal.version, goal.fingerprint)) is VersionPhase.READY
            else replace(goal, serve=False)
            for goal in goals
            if goal not in in_vain
        ]
        settled = {goal.version for goal in pursued if goal.serve}
        return pursued + self._kept(self.ready_versions - settled - target.removed)

    def _in_vain(self, goals: Iterable[Wanted]) -> list[Wanted]:
        """Returns the goals whose versions are loaded or waiting to load, if the load of another version has
        failed and is not retried; otherwise none.
        """
        if not self._broken:
            return []
        phases = self._phases()
        idle = (None, VersionPhase.LOADED)
        return [
            goal for goal in goals if goal.loaded and phases.get((goal.version, goal.fingerprint)) in idle
        ]

    def _phases(self) -> dict[tuple[str, str], VersionPhase]:
        return {
            (one.model.version, one.fingerprint): one.phase
            for one in self.held.values()
            if one.phase is not VersionPhase.DRAINING
        }

    @property
    def _broken(self) -> list[str]:
        """The versions whose loads have failed and are not retried."""
        return sorted(
            one.model.version
            for one in self.held.values()
            if one.phase is VersionPhase.FAILED and one.retry_at is None
        )

    def _goals_of(
        self, target: Target, labelled: Iterable[str] = (), *, asleep: frozenset[str] = frozenset()
    ) -> list[Wanted]:
        """Returns the result of `target.wanted`, from a cache because `Executor.advance` needs the result
        several times.
        """
        named = frozenset(labelled)
        of, before, sleeping, goals = self._goals
        if of is not target or before != named or sleeping != asleep:
            goals = target.wanted(named, asleep=asleep)
            self._goals = target, named, asleep, goals
        return goals

    def _changed(self, target: Target) -> list[Wanted]:
        return target.wanted(self.labels.versions, asleep=self._sleeping(target), serve=False)

    def _sleeping(self, target: Target) -> frozenset[str]:
        resting = frozenset(self.resting)
        if not target.source.found.config.on_demand:
            return resting
        return (frozenset(target.source.versions) - self.awake) | resting

    def only_kept(self, version: str) -> bool:
        """Returns whether a version is kept loaded only so that a label can be moved back to it."""
        return (
            version in self.labels.kept.versions
            and version not in self.labels.versions
            and version not in self._selected
        )

    def may_give_up(self, version: str) -> bool:
        """Returns whether a version may be unloaded for good: it is `only_kept`, and another version takes
        requests.
        """
        return (
            self.only_kept(version)
            and version not in self._replaced_by
            and any(self._answers(other) for other in self._selected | self.labels.versions)
        )

    def _kept(self, versions: Set[str]) -> list[Wanted]:
        """Returns goals that keep each of the given versions in service if it is ready, even if its files
        have left the repository.
        """
        return [
            Wanted(self.name, one.model.version, one.fingerprint, one.settings)
            for one in self.held.values()
            if one.phase is VersionPhase.READY and one.model.version in versions
        ]

    def _missing(self, present: Set[str]) -> list[FoundVersion]:
        """Returns versions that a label points to but that do not exist; their loads fail for that reason.

        Requests for such a label are refused, and so are requests without a version if the label is "stable".
        Otherwise these requests would reach a version to which nobody has moved the label.
        """
        target = self.target
        if target is None or target.source.found.problem:
            return []
        missing = sorted(set(self.labels.wanted.values()) - present - set(target.source.versions))
        return [
            FoundVersion(version, None, problem=missing_text(self.name, version, self.labels.of(version)))
            for version in missing
        ]

    def find(self, goal: Wanted) -> tuple[Target, FoundVersion]:
        """Returns the target that contains a wanted version, and the version as found in the repository."""
        for target in (self.change, self.target):
            if target is None:
                continue
            for version in target.versions(self.labels.versions):
                if (version.version, identity(version)) == (goal.version, goal.fingerprint):
                    return target, version
        if self.target is not None:
            for version in self._missing(set()):
                if (version.version, identity(version)) == (goal.version, goal.fingerprint):
                    return self.target, version
        # Cannot happen: the planner only loads versions from `wanted`.
        raise LookupError(f"{goal.name} {goal.version} is not wanted")

    @property
    def settled(self) -> bool:
        """Whether the model has reached its target, or cannot: no change or load is in progress, no retry is
        scheduled, and every version to load has been tried.
        """
        if self.change is not None:
            return False
        if any(
            one.phase in (VersionPhase.LOADING, VersionPhase.LOADED)
            or one.retry_at is not None
            or one.resizing
            for one in self.held.values()
        ):
            return False
        there = {(one.model.version, one.fingerprint) for one in self.held.values()}
        return all((goal.version, goal.fingerprint) in there for goal in self.wanted() if goal.loaded)

    def outcome(self) -> dict[str, str] | None:
        """Returns the versions that the change in progress failed to load, each with the reason: {} if all
        loads succeeded, None while a load runs, or is still to be started or retried.
        """
        assert self.change is not None, "there is a change"
        failures: dict[str, str] = {}
        there = {
            (one.model.version, one.fingerprint): one
            for one in self.held.values()
            if one.phase is not VersionPhase.DRAINING
        }
        for goal in self._changed(self.change):
            one = there.get((goal.version, goal.fingerprint))
            if not goal.loaded:
                continue
            if one is None or one.phase is VersionPhase.LOADING or one.retry_at is not None:
                return None
            if one.phase is VersionPhase.FAILED:
                failures[goal.version] = one.model.reason
        return failures

    def load_ended(self, version: str) -> str | None:
        """Returns the outcome of a version's load: None until it ends, "" for success, or why it failed."""
        if self.ready(version) is not None:
            return ""
        held = [
            one
            for one in self.held.values()
            if one.model.version == version and one.phase is not VersionPhase.DRAINING
        ]
        failed = [
            one.model.reason for one in held if one.phase is VersionPhase.FAILED and one.retry_at is None
        ]
        if failed:
            return failed[-1]
        if any(goal.version == version for goal in self.wanted()):
            return None
        withheld = self._withheld.get(version)
        return "it is no longer served" if withheld is None else withheld.model.reason

    @property
    def in_force(self) -> InForce | None:
        """The configuration with which the model was loaded, and its served versions; None if there are
        none.
        """
        served = [one.model for one in self.held.values() if one.phase is VersionPhase.READY]
        return InForce(self.target.source.found.config, served) if served and self.target else None

    @property
    def resize_failures(self) -> dict[str, str]:
        """The versions whose number of instances could not be changed, each with the reason."""
        return {
            one.model.version: one.resize_failure
            for one in self.held.values()
            if one.phase is VersionPhase.READY and one.resize_failure
        }

    def ready(self, version: str) -> Servable | None:
        """Returns the load that serves a version, if any."""
        return self._in_phase(version, VersionPhase.READY)

    def _in_phase(self, version: str, phase: VersionPhase) -> Servable | None:
        held = self.held.values()
        return next((one for one in held if one.phase is phase and one.model.version == version), None)

    def may_rest(self, one: Servable) -> bool:
        """Returns whether a ready version may be unloaded now: no change or load of the model is in progress,
        and either the same files can be loaded again, or the version may be given up (`may_give_up`).
        """
        if self.change is not None or any(
            other.phase in (VersionPhase.LOADING, VersionPhase.LOADED) for other in self.held.values()
        ):
            return False
        if self.may_give_up(one.model.version):
            return True
        mine = (one.model.version, one.fingerprint)
        return self.target is not None and any(
            (version.version, identity(version)) == mine
            for version in self.target.versions(self.labels.versions)
        )

    def load_again(self, version: str) -> bool:
        """Changes the target so that a version is loaded again from the same files. Returns False, without
        changing anything, if the model is not wanted, or while a change of the model or a load of the version
        is in progress.
        """
        if self.target is None or self.change is not None:
            return False
        under_way = (VersionPhase.LOADING, VersionPhase.LOADED)
        if any(one.phase in under_way and one.model.version == version for one in self.held.values()):
            return False
        self.target = self.target.loaded_again(version)
        return True

    def rest(self, version: str, reason: str) -> None:
        """Marks a version for unloading. Clients see the `reason`.

        The next request for the version loads it again. If the version was only kept for a rollback, it is
        dropped for good instead.
        """
        self.awake.discard(version)
        if self.only_kept(version):
            self.labels.kept.drop(version)
            return
        self.resting[version] = reason

    def statistics(self, version: str) -> ModelStatistics | None:
        """Returns the statistics of a serving, sleeping or waiting version; None for other versions. The next
        load of the version continues them.
        """
        one = self.ready(version) or self._asleep.get(version) or self._waiting.get(version)
        return None if one is None else one.model.statistics

    def take_over(self, asleep: StandIn) -> None:
        """Makes a placeholder show the signature and statistics of the version's last load."""
        loaded = (VersionPhase.READY, VersionPhase.DRAINING)
        for one in self.held.values():
            if one.model.version == asleep.model.version and one.phase in loaded:
                asleep.resemble(one.model)

    @property
    def ready_versions(self) -> set[str]:
        """The versions that take requests."""
        return {one.model.version for one in self.held.values() if one.phase is VersionPhase.READY}

    def publish(
        self, engine: Engine, wanted: Sequence[Wanted], make_asleep: MakeAsleep, *, started: bool
    ) -> None:
        """Registers one entry per version with the engine: the load that serves, or else another load or a
        placeholder (see `_choose`).

        `wanted` is what `wanted()` returns.
        """
        shown = self._choose(wanted, make_asleep)
        at_start = {id(one) for one in self.held.values() if one.at_start}
        for one in shown.values():
            # A version that is loaded after the start must not make the whole server unready, unless the
            # options ask for this behaviour of Triton.
            counts = not started or id(one) in at_start
            if self._control_as_triton and one.phase is VersionPhase.FAILED:
                counts = _failed_as_in_triton(one)
            one.require(self._strict_readiness and counts and one.phase is not VersionPhase.DRAINING)
        if not shown and self.target is None and not self.held:
            for one in self._shown.values():
                engine.remove(one.model)
        else:
            engine.declare(self.name)
            for version, one in self._shown.items():
                if version not in shown:
                    engine.remove(one.model)
            for one in shown.values():
                engine.add(one.model)
            engine.set_labels(self.name, self.labels.pointing, self.ready_versions - self._selected)
        self._shown = shown

    def _choose(self, wanted: Sequence[Wanted], make_asleep: MakeAsleep) -> dict[str, ShownVersion]:
        """Returns the entry to show for each version. If a version has several candidates, a later assignment
        below replaces an earlier one.
        """
        shown: dict[str, ShownVersion] = {**self._unloaded_versions(wanted)}
        loads = list(self.held.values())
        if len(loads) > 1:
            loads.sort(key=lambda one: (_SHOWN_LAST.index(one.phase), one.key))
        for one in loads:
            shown[one.model.version] = one
        goals = [goal for goal in wanted if goal.serve or goal.version not in shown]
        # The placeholder of a sleeping version stays published until the load has succeeded, because it holds
        # the requests that arrive in the meantime.
        sleeping = [
            goal.version
            for goal in goals
            if not goal.loaded or (goal.version in self._asleep and not self.ready(goal.version))
        ]
        waiting = [goal.version for goal in goals if goal.loaded and goal.version not in shown]
        self._asleep = {version: self._asleep.get(version) or make_asleep(version) for version in sleeping}
        shown |= {version: one for version, one in self._asleep.items() if self.ready(version) is None}
        self._waiting = {
            version: self._waiting.get(version) or self._placeholder(version) for version in waiting
        }
        shown |= self._waiting
        shown |= {
            version: one
            for version, one in self.failures.items()
            if version not in shown or version in self._unloaded
        }
        self._withheld = self._withhold()
        shown |= {
            version: one
            for version, one in self._withheld.items()
            if version not in shown or version in self._unloaded
        }
        self._show_newer_loads(shown)
        return shown

    def _withhold(self) -> dict[str, StandIn]:
        """Returns placeholders for the versions that --require-all-versions withholds because another version
        failed to load.
        """
        if not self._require_all_versions or self.target is None:
            return {}
        goals = self._goals_of(self.target, self.labels.versions, asleep=self._sleeping(self.target))
        reason = (
            f"not served, because version {', '.join(self._broken)} of the model failed to load, and the"
            " server was started with --require-all-versions"
        )
        withheld: dict[str, StandIn] = {}
        for goal in self._in_vain(goals):
            one = self._withheld.get(goal.version)
            if one is None or one.model.reason != reason:
                config = self.target.source.config
                one = StandIn(self.name, goal.version, config, VersionPhase.FAILED, reason)
            withheld[goal.version] = one
        return withheld

    def _show_newer_loads(self, shown: Mapping[str, ShownVersion]) -> None:
        """Shows the state of a load in the entry that clients see in the meantime: that of the serving
        version while newer files are loaded, or the placeholder of a sleeping version.
        """
        for version, asleep in self._asleep.items():
            if shown.get(version) is asleep:
                load = self._in_phase(version, VersionPhase.LOADING)
                progress = None if load is None else load.model.progress
                asleep.show_load(loading=load is not None, progress=progress)
        for one in self.held.values():
            version = one.model.version
            # If all instances of a version are unavailable, its entry already shows why, and keeps showing
            # it.
            if shown[version] is not one or one.model.state is not ModelState.READY:
                continue
            failed = [
                other.model.reason
                for other in self.held.values()
                if other.model.version == version and other is not one and other.phase is VersionPhase.FAILED
            ]
            if not failed and version in self.failures:
                failed = [self.failures[version].model.reason]
            load = self._in_phase(version, VersionPhase.LOADING)
            progress = None if load is None else load.model.progress
            one.show_newer(failed[0] if failed else "", progress, self._remark(version))

    def _remark(self, version: str) -> str:
        """Returns a remark for users on why a serving version will be unloaded; usually empty."""
        if self.only_kept(version):
            labels = ", ".join(f"'{label}'" for label in self.labels.kept.labels_of(version))
            return f"stays loaded for a while, for a rollback of {labels}"
        return self.files_gone.get(version, "")

    @property
    def files_gone(self) -> dict[str, str]:
        """The versions whose files are gone, and which serve only because a label points to them.

        Maps each version to a text that says what will happen to it.
        """
        if self.target is None or self.target.source.found.problem:
            return {}
        gone = set(self.labels.wanted.values()) & self.ready_versions - set(self.target.source.versions)
        return {version: files_gone_text(version, self.labels.of(version)) for version in gone}

    def _placeholder(self, version: str) -> StandIn:
        target = self.target or self.change
        assert target is not None, "what is waited for is wanted"
        return StandIn(self.name, version, target.source.config, VersionPhase.WAITING)

    def note_failures(self, target: Target, reasons: Mapping[str, str]) -> None:
        """Records why each version in `reasons` could not be loaded, to be shown to clients."""
        config = target.source.config
        for version, reason in reasons.items():
            self.failures[version] = StandIn(self.name, version, config, VersionPhase.FAILED, reason)

    def _unloaded_versions(self, wanted: Sequence[Wanted]) -> Mapping[str, Servable]:
        """Returns versions that served before and are still in the repository, to be listed as unloaded.

        A version that a request has unloaded is listed until it is loaded again. A version that the version
        policy has deselected is listed for UNLOADED_SHOWN_SECONDS, so that clients can see what became of it.
        """
        if not self._unloaded:
            return self._unloaded
        earliest = time.monotonic() - UNLOADED_SHOWN_SECONDS
        self._unloaded = {
            version: one
            for version, one in self._unloaded.items()
            if version in self.known_versions and (self._by_request(version) or one.ended_at > earliest)
        }
        there = {one.model.version for one in self.held.values()} | {goal.version for goal in wanted}
        for version in there:
            self._unloaded.pop(version, None)
        return self._unloaded

    def _by_request(self, version: str) -> bool:
        """Returns whether a version is no longer wanted because a request unloaded it or its model."""
        return self.target is None or version in self.target.removed

    def unloaded(self, one: Servable) -> None:
        """Removes a load that has been drained; its version is now listed as unloaded."""
        del self.held[one.key]
        one.end()
        self._unloaded[one.model.version] = one

    @property
    def gone(self) -> bool:
        """Whether the model is neither wanted, loaded nor in a repository, so that it can be removed.

        A model that could not be read has no known versions, but must still show the reason.
        """
        wanted = self.target is not None or self.change is not None or bool(self.failures)
        return not wanted and not self.held and not self.known_versions


def _failed_as_in_triton(one: ShownVersion) -> bool:
    """Returns whether the load of a version failed in such a way that Triton would show the version.

    Triton does not list versions whose load failed before the version was created: those of models that
    Triton could not read, and of ensembles that call a missing model.
    """
    model = one.model
    return one.phase is VersionPhase.FAILED and model.version != NO_VERSION and model.config.ensemble is None
