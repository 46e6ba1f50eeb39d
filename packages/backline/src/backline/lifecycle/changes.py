"""Makes changes that a caller waits for: loads one version, or moves a whole model to a new target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec.structs import replace

from backline.engine.config.model_config import UNAVAILABLE_VERSIONS
from backline.engine.model import NO_VERSION
from backline.lifecycle.phase import VersionPhase
from backline.lifecycle.served_model import ServedModel
from backline.lifecycle.served_models import ServedModels
from backline.lifecycle.wanted import Target
from backline.repository.repository import FoundModel
from backline_client.values.control import unreadable
from backline_client.values.errors import InvalidArgument, Unavailable


class AwaitedChanges:
    """Makes changes to models for callers that wait for the outcome: sets the target of a model, calls
    `advance`, and waits until the target is reached. Use it only on the event loop.
    """

    def __init__(self, models: ServedModels, advance: Callable[[Iterable[str]], None]) -> None:
        self._models = models
        self._advance = advance
        #: The models whose changes are to be aborted, each with the cause that the error names.
        self._ended: dict[str, str] = {}

    async def load_now(self, served: ServedModel, version: str) -> str:
        """Loads a wanted version. Returns, once the load has ended, why it failed, or "" if it succeeded."""
        served.awake.add(version)
        served.resting.pop(version, None)
        _drop_failed(served, version)
        self._advance((served.name,))
        await self._models.until(lambda: served.load_ended(version) is not None)
        return served.load_ended(version) or ""

    async def bring_up(self, served: ServedModel, version: str) -> bool:
        """Loads a version, unless it is ready or its model should not be served. Returns whether this added
        the version to the target. Raises InvalidArgument if the load fails.
        """
        before = served.target
        if served.ready(version) is not None or before is None:
            return False
        served.target = replace(before, added=before.added | {version}, removed=before.removed - {version})
        reason = await self.load_now(served, version)
        if served.ready(version) is None:
            if served.target is not None and version not in before.added:
                left_out = before.removed & {version}
                served.target = replace(
                    served.target,
                    added=served.target.added - {version},
                    removed=served.target.removed | left_out,
                )
            self._advance((served.name,))
            raise InvalidArgument(f"version {version} of '{served.name}' cannot be loaded: {reason}")
        return version not in before.added

    async def change(self, name: str, target: Target) -> None:
        """Moves a model to a target. If any load fails, changes nothing, and raises InvalidArgument with the
        reasons. Raises Unavailable if the change is aborted.
        """
        served = self._models[name]
        served.failures.clear()
        served.change = target
        _drop_failed(served)
        self._advance((name,))
        try:
            await self._models.until(lambda: served.outcome() is not None or name in self._ended)
            if name in self._ended:
                raise Unavailable(f"the load of '{name}' was aborted by {self._ended[name]}")
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
            raise InvalidArgument(load_failed(name, failures, target.source.found))

    def end(self, name: str, by: str = "a request to unload it") -> None:
        """Aborts a model's change in progress, so that nobody waits for a load that may never end. The error
        for the caller who waits for the change names `by` as the cause.
        """
        served = self._models.find(name)
        if served is not None and served.change is not None and served.outcome() is None:
            self._ended[name] = by
            self._advance((name,))

    def end_all(self, by: str) -> None:
        """Aborts every change in progress."""
        for name in [served.name for served in self._models]:
            self.end(name, by)


def load_failed(name: str, failures: Mapping[str, str], found: FoundModel | None = None) -> str:
    """Returns a text that says why the load of each version failed. The text begins with Triton's words,
    which depend on the step that failed.

    `found` is the model as found in its repository.
    """
    for version, reason in failures.items():
        if version == NO_VERSION and not reason.startswith(UNAVAILABLE_VERSIONS):
            return unreadable(name, reason)
        if version == NO_VERSION or reason.startswith(
            (f"ensemble {name} ", f"ensemble '{name}' ", f"in ensemble {name}, ")
        ):
            return f"load failed for model '{name}': {reason}"
    if found is not None and _is_unknown(found):
        return unreadable(name, "; ".join(f"version {version}: {why}" for version, why in failures.items()))
    reasons = "".join(
        f"version {version} is at UNAVAILABLE state: {reason};\n" for version, reason in failures.items()
    )
    return f"load failed for model '{name}': {reasons}"


def _is_unknown(found: FoundModel) -> bool:
    """Returns whether neither a configuration nor a file says which backend a model needs."""
    unread = bool(found.versions) and all(version.path is None for version in found.versions)
    return unread and not found.config.declared


def _drop_failed(served: ServedModel, version: str | None = None) -> None:
    """Discards failed loads of one version, or of all versions if `version` is None, so that these versions
    are loaded again.
    """
    for one in [
        one
        for one in served.held.values()
        if one.phase is VersionPhase.FAILED and version in (None, one.model.version)
    ]:
        del served.held[one.key]
