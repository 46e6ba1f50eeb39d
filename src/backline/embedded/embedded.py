"""The engine inside a user's program: serves the models of repositories without sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from backline.backends.registry import FORMATS
from backline.engine.engine import Engine
from backline.engine.errors import InvalidArgument, Unavailable
from backline.engine.model import ModelState
from backline.lifecycle.journal import LoadEvent
from backline.lifecycle.lifecycle import Lifecycle
from backline.lifecycle.options import LifecycleOptions
from backline.repository.configuration import ConfigFiles
from backline.repository.location import open_repository, split_name
from backline.system.user_folders import user_cache


class Embedded:
    """An engine and the models of its repositories. Runs on the current event loop."""

    def __init__(
        self,
        repositories: Sequence[str | Path],
        options: LifecycleOptions | None = None,
        *,
        config_name: str = "",
        model_name: str = "",
        exit_on_error: bool = False,
    ) -> None:
        """`repositories` are paths or URLs. Raises BacklineError if one or the stored state is invalid."""
        self.engine = Engine()
        self._exit_on_error = exit_on_error
        options = options or LifecycleOptions()
        configs = ConfigFiles(config_name, complete=options.complete_configs)
        cache = options.cache_folder or user_cache()
        # A folder given twice, perhaps in different spellings, is one repository.
        locations: dict[str, str] = {}
        for location in map(str, repositories):
            first = locations.setdefault(_same(location), location)
            if split_name(first)[0] != split_name(location)[0]:
                raise InvalidArgument(
                    f"a repository was given twice: '{first}' and '{location}'; leave one out"
                )
        if model_name and len(locations) > 1:
            raise InvalidArgument(
                f"the model name '{model_name}' is for one repository with one model, but there are"
                f" {len(locations)}"
            )
        opened = [
            open_repository(location, formats=FORMATS, cache=cache, configs=configs, name=model_name)
            for location in locations.values()
        ]
        self._lifecycle = Lifecycle(self.engine, opened, options)

    @property
    def state_folder(self) -> Path:
        """The folder that holds labels, the audit log and recorded requests."""
        return self._lifecycle.state_folder

    async def start(self, on_event: Callable[[LoadEvent], None] | None = None) -> None:
        """Loads the models that the options ask for. A model that fails is UNAVAILABLE, with the reason.

        Raises BacklineError if a repository cannot be read, or, with `exit_on_error`, if a model fails.
        """
        await self._lifecycle.start(on_event)
        if self._exit_on_error:
            failed = [model for model in self.engine.models() if model.state is ModelState.UNAVAILABLE]
            if failed:
                reasons = "".join(
                    f"\n  {model.name} version {model.version}: {model.reason}" for model in failed
                )
                raise Unavailable(f"not all models could be loaded, and --exit-on-error is set:{reasons}")

    def stopping(self) -> None:
        """Makes the engine not ready. Requests in flight complete, except those that wait for a load."""
        self.engine.stopping()
        self._lifecycle.stopping()

    async def stop(self) -> None:
        """Completes running requests, refuses queued ones, and unloads the models."""
        self.stopping()
        await self._lifecycle.close()


def _same(location: str) -> str:
    """A key that is equal for all spellings of one repository's location."""
    _, text = split_name(location)
    return text if "://" in text or text.startswith("hf:") else str(Path(text).resolve())
