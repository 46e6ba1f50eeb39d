"""The phases of a version: which phase may follow which, and the state that clients see in each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from enum import Enum
from types import MappingProxyType

from backline.engine.config.model_config import ModelConfig
from backline.engine.model import LoadProgress, Model, ModelState, RequestQueue, Serving
from backline.engine.ticket import Ticket


class VersionPhase(Enum):
    """The phases that a version goes through, from wanted to unloaded."""

    #: Wanted; its load has not begun.
    WAITING = "waiting"
    #: Not loaded; a request will load it.
    ASLEEP = "asleep"
    #: Being loaded for a request.
    WAKING = "waking"
    LOADING = "loading"
    #: In memory and warmed up, but not yet open to requests.
    LOADED = "loaded"
    READY = "ready"
    #: Accepts no new requests; waits for those in flight to complete.
    DRAINING = "draining"
    FAILED = "failed"
    UNLOADED = "unloaded"

    #: The members are compared by identity. The hash of an Enum takes a call of a Python function.
    __hash__ = object.__hash__


_P = VersionPhase

#: The phases that may follow each phase. A retry or a reload is a new load, which begins with LOADING again.
FOLLOWING: Mapping[VersionPhase, frozenset[VersionPhase]] = MappingProxyType(
    {
        _P.WAITING: frozenset(),
        _P.ASLEEP: frozenset({_P.WAKING}),
        _P.WAKING: frozenset({_P.ASLEEP}),
        _P.LOADING: frozenset({_P.LOADED, _P.FAILED}),
        _P.LOADED: frozenset({_P.READY, _P.DRAINING}),
        # An ensemble fails when a model that it calls fails.
        _P.READY: frozenset({_P.DRAINING, _P.FAILED}),
        _P.DRAINING: frozenset({_P.UNLOADED}),
        _P.FAILED: frozenset(),
        _P.UNLOADED: frozenset(),
    }
)

#: The state that clients see in each phase. A loaded version is shown as loading until requests reach it.
SEEN_AS: Mapping[VersionPhase, ModelState] = MappingProxyType(
    {
        _P.WAITING: ModelState.LOADING,
        _P.ASLEEP: ModelState.ON_DEMAND,
        _P.WAKING: ModelState.LOADING,
        _P.LOADING: ModelState.LOADING,
        _P.LOADED: ModelState.LOADING,
        _P.READY: ModelState.READY,
        _P.DRAINING: ModelState.UNLOADING,
        _P.FAILED: ModelState.UNAVAILABLE,
        _P.UNLOADED: ModelState.UNAVAILABLE,
    }
)


class IllegalPhase(RuntimeError):
    """Raised when a version is moved to a phase that may not follow its current one: a bug in the server."""


def check_transition(before: VersionPhase, after: VersionPhase) -> None:
    """Raises IllegalPhase unless `after` may follow `before`."""
    if after not in FOLLOWING[before]:
        raise IllegalPhase(f"a version that is {before.value} cannot become {after.value}")


class ShownVersion:
    """A version as clients see it. Only this class and its subclasses write the state of `model`."""

    def __init__(self, model: Model, phase: VersionPhase, reason: str = "") -> None:
        self.model = model
        #: Only `enter` changes it. Not a property, because it is read about twenty times for each load.
        self.phase = phase
        self._show(reason)

    def enter(self, phase: VersionPhase, reason: str = "") -> None:
        """Enters a phase; clients see `reason`. Raises IllegalPhase if the phase may not follow the current
        one.
        """
        check_transition(self.phase, phase)
        self.phase = phase
        self._show(reason)

    def _show(self, reason: str, *, stalled: bool = False) -> None:
        """Sets the state that clients see. A `stalled` version keeps its phase, but appears unavailable."""
        self.model.state = SEEN_AS[VersionPhase.FAILED if stalled else self.phase]
        self.model.reason = reason

    def require(self, required: bool) -> None:
        """Sets whether the server is ready only if this version is ready."""
        self.model.required = required


class StandIn(ShownVersion):
    """A placeholder for a version that is not loaded: its load has not begun, the version is asleep, a change
    failed to load it, or it is withheld because another version failed to load.
    """

    def __init__(
        self, name: str, version: str, config: ModelConfig, phase: VersionPhase, reason: str = ""
    ) -> None:
        super().__init__(Model(name, version, config), phase, reason)

    def hold_requests(
        self, check: Callable[[Ticket], None], queue: RequestQueue, wake: Callable[[], Awaitable[None]]
    ) -> None:
        """Makes clients' requests wait in `queue` until the version is loaded. `wake` loads the version
        without a request.
        """
        self.model.on_demand = True
        self.model.serving = Serving(check, queue, wake=wake)

    def resemble(self, loaded: Model) -> None:
        """Copies the signature and placement of an earlier load, and continues its statistics."""
        model = self.model
        model.signature, model.max_batch_size = loaded.signature, loaded.max_batch_size
        model.backend, model.platform, model.placement = loaded.backend, loaded.platform, loaded.placement
        model.scheduling, model.statistics = loaded.scheduling, loaded.statistics
        model.reads_parameters = loaded.reads_parameters

    def show_load(self, *, loading: bool, progress: LoadProgress | None) -> None:
        """Shows whether a load is running and, if known, its progress."""
        phase = VersionPhase.WAKING if loading else VersionPhase.ASLEEP
        if phase is not self.phase:
            self.enter(phase, self.model.reason)
        self.model.progress = progress

    def fail_to_wake(self, reason: str) -> None:
        """Shows clients why the last load failed."""
        self.model.reason = f"the last load failed: {reason}; the next request tries again"

    def hand_over(self, loaded: Model) -> None:
        """Passes all later requests directly to the loaded version."""
        serving = loaded.serving
        self.model.serving = Serving(serving.check, serving.queue, wake=self.model.serving.wake)
