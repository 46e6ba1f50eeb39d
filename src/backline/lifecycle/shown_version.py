"""A version as the engine shows it, and the stand-ins for versions that are not loaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from backline.engine.messages import InferRequest
from backline.engine.model import LoadProgress, Model, RequestQueue
from backline.engine.model_config import ModelConfig
from backline.lifecycle.phase import SEEN_AS, VersionPhase, check_transition


class ShownVersion:
    """Owns the `model` that the engine and its callers see: nothing else in the lifecycle writes it."""

    def __init__(self, model: Model, phase: VersionPhase, reason: str = "") -> None:
        self.model = model
        self._phase = phase
        self._show(reason)

    @property
    def phase(self) -> VersionPhase:
        return self._phase

    def enter(self, phase: VersionPhase, reason: str = "") -> None:
        """Goes on to another phase, for a reason if there is one to show. Raises IllegalTransition."""
        check_transition(self._phase, phase)
        self._phase = phase
        self._show(reason)

    def _show(self, reason: str, *, stalled: bool = False) -> None:
        """Derives what clients see. One that is `stalled` keeps its phase, but answers nothing for now."""
        self.model.state = SEEN_AS[VersionPhase.FAILED if stalled else self._phase]
        self.model.reason = reason

    def require(self, required: bool) -> None:
        """Whether the server is only ready when this version is."""
        self.model.required = required


class StandIn(ShownVersion):
    """Stands for a version that has no load: it waits for one, is asleep, or could not be loaded with others."""

    def __init__(
        self, name: str, version: str, config: ModelConfig, phase: VersionPhase, reason: str = ""
    ) -> None:
        super().__init__(Model(name, version, config), phase, reason)

    def hold_requests(
        self, check: Callable[[InferRequest], None], queue: RequestQueue, wake: Callable[[], Awaitable[None]]
    ) -> None:
        """Takes requests until the version is loaded, which `wake` brings about without one."""
        model = self.model
        model.on_demand = True
        model.check, model.queue, model.wake = check, queue, wake

    def resemble(self, loaded: Model) -> None:
        """Shows what is known of the version from an earlier load; its statistics go on."""
        model = self.model
        model.signature, model.max_batch_size = loaded.signature, loaded.max_batch_size
        model.backend, model.platform, model.placement = loaded.backend, loaded.platform, loaded.placement
        model.scheduling, model.statistics = loaded.scheduling, loaded.statistics

    def show_load(self, *, loading: bool, progress: LoadProgress | None) -> None:
        """Shows whether a load is under way, and how far it is where that is known."""
        phase = VersionPhase.WAKING if loading else VersionPhase.ASLEEP
        if phase is not self.phase:
            self.enter(phase, self.model.reason)
        self.model.progress = progress

    def fail_to_wake(self, reason: str) -> None:
        """Shows why the last load failed; the next request tries again."""
        self.model.reason = f"the last load failed: {reason}; tried again when a request comes"

    def hand_over(self, loaded: Model) -> None:
        """From now on requests go straight to the version that was loaded."""
        self.model.check, self.model.queue = loaded.check, loaded.queue
