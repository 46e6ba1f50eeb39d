"""AwaitedChanges that somebody waits for: a version that is to be up now, a model that is to become another as a whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from backline.engine.errors import InvalidArgument, Unavailable
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.lifecycle.wanted.target import Target


class AwaitedChanges:
    """AwaitedChanges what models are to be, and waits until they are. `advance` takes the steps of some models. Lives on the event loop."""

    def __init__(self, models: ServedModels, advance: Callable[[Iterable[str]], None]) -> None:
        self._models = models
        self._advance = advance
        #: Names of models whose change is to end, whatever it has come to, and by what.
        self._ended: dict[str, str] = {}

    async def load_now(self, served: ServedModel, version: str) -> str:
        """Returns when the load of a wanted version has ended, and why it failed; empty when it is ready."""
        served.awake.add(version)
        served.resting.pop(version, None)
        _drop_failed(served, version)
        self._advance((served.name,))
        await self._models.until(lambda: served.load_ended(version) is not None)
        return served.load_ended(version) or ""

    async def bring_up(self, served: ServedModel, version: str) -> bool:
        """Returns when a version is ready, and whether it was added to the target. Raises InvalidArgument when it cannot be loaded."""
        before = served.target
        if served.ready(version) is not None or before is None:
            return False
        served.target = replace(before, beside=before.beside | {version}, without=before.without - {version})
        reason = await self.load_now(served, version)
        if served.ready(version) is None:
            if served.target is not None and version not in before.beside:
                served.target = replace(served.target, beside=served.target.beside - {version})
            self._advance((served.name,))
            raise InvalidArgument(f"version {version} of '{served.name}' cannot be loaded: {reason}")
        return version not in before.beside

    async def change(self, name: str, target: Target) -> None:
        """Brings a model to a target as a whole. When a version fails everything stays as it was, and InvalidArgument has the reasons."""
        served = self._models[name]
        served.failures.clear()
        served.change = target
        _drop_failed(served)
        self._advance((name,))
        try:
            await self._models.until(lambda: served.outcome() is not None or name in self._ended)
            if name in self._ended:
                raise Unavailable(f"the load of '{name}' was ended by {self._ended[name]}")
            failures = served.outcome() or {}
        except BaseException:
            served.change = None
            self._advance((name,))
            raise
        finally:
            self._ended.pop(name, None)
        served.change = None
        if not failures:
            served.target = target
        else:
            served.note_failures(target, failures)
        self._advance((name,))
        if failures:
            # Triton's words.
            reasons = "".join(
                f"version {version} is at UNAVAILABLE state: {reason};\n"
                for version, reason in failures.items()
            )
            raise InvalidArgument(f"load failed for model '{name}': {reasons}")

    def end(self, name: str, by: str = "a request to unload it") -> None:
        """Ends the change of a model that is under way, if one is: its load may have no end of its own. Who waits is told by what."""
        served = self._models.find(name)
        if served is not None and served.change is not None and served.outcome() is None:
            self._ended[name] = by
            self._advance((name,))

    def end_all(self, by: str) -> None:
        """Ends all changes that are under way."""
        for name in [served.name for served in self._models]:
            self.end(name, by)


def _drop_failed(served: ServedModel, version: str | None = None) -> None:
    """What failed before is tried anew."""
    for one in [
        one
        for one in served.held.values()
        if one.phase is VersionPhase.FAILED and version in (None, one.model.version)
    ]:
        del served.held[one.key]
