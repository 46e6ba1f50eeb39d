"""The engine inside a user's program: serves the models of repositories without sockets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from backline.backends.registry import FORMATS, PLATFORMS
from backline.embedded.openers import open_asked
from backline.engine.engine import Engine
from backline.engine.model import ModelState
from backline.lifecycle.journal import LoadEvent
from backline.lifecycle.lifecycle import Lifecycle
from backline.lifecycle.options import ALL_MODELS, LifecycleOptions
from backline.repository.configuration import ConfigFiles
from backline.repository.location import open_repository, split_name
from backline_client.system.busy_poll import BusyPoll
from backline_client.system.user_folders import user_cache
from backline_client.values.errors import InvalidArgument, Unavailable
from backline_client.values.names import check_name

if TYPE_CHECKING:
    from backline_client.client.aio import AsyncClient
    from backline_client.client.background_loop import BackgroundLoop
    from backline_client.client.sync import Client


class ModelsNotLoaded(Unavailable):
    """Raised at start if a model has failed to load and the caller requires all models."""


class Embedded:
    """An engine inside the program, with the models of one or more repositories.

    >>> with Embedded("models/", models=["add1"]) as client:
    ...     client["add1"](x)

    In a `with` block the engine runs on a background thread, in an `async with` block on the current event
    loop. The block receives a `Client` or an `AsyncClient`. At the end of the block, the models are unloaded.
    Programs that submit tickets to the `engine` themselves call `start` and `stop`.
    """

    def __init__(
        self,
        repositories: str | Path | Sequence[str | Path],
        options: LifecycleOptions | None = None,
        *,
        models: Sequence[str] | None = None,
        config_name: str = "",
        model_name: str = "",
        exit_on_error: bool = False,
    ) -> None:
        """`repositories` are paths or URLs, as for `backline serve`.

        `models` are the models to load at start, "*" for all; the program can load and unload models later.
        Without `models`, the `options` decide what is loaded; without both, all models are loaded. If
        `config_name` is set, a file configs/<config_name>.pbtxt in a model's folder is its configuration.
        `model_name` is the name of the model if there is one repository with one model. With `exit_on_error`,
        `start` raises an error if a model fails to load. Raises BacklineError if a location or the stored
        state is invalid.
        """
        self.engine = Engine()
        self._exit_on_error = exit_on_error
        self._stopped = False
        self._client: AsyncClient | None = None
        self._loop: BackgroundLoop | None = None
        if isinstance(repositories, str | Path):
            repositories = (repositories,)
        elif not isinstance(repositories, Sequence):
            raise InvalidArgument(
                "Embedded takes the path or URL of a repository, or a list of them, not an object of type"
                f" {type(repositories).__name__}: to serve a Python object, call backline.serve"
            )
        if models is None and options is None:
            models = (ALL_MODELS,)
        options = options or LifecycleOptions()
        if models is not None:
            options = replace(options, mode="explicit", load_models=tuple(models))
        configs = ConfigFiles(config_name, complete=options.complete_configs, platforms=PLATFORMS)
        cache = options.cache_folder or user_cache()
        # A folder given twice, perhaps in different spellings, is one repository.
        locations: dict[str, str] = {}
        for location in map(str, repositories):
            first = locations.setdefault(_same(location), location)
            if split_name(first)[0] != split_name(location)[0]:
                raise InvalidArgument(
                    f"a repository was given twice: '{first}' and '{location}'; leave one out"
                )
        if model_name:
            check_name("model", model_name)
        if model_name and len(locations) > 1:
            raise InvalidArgument(
                f"the model name '{model_name}' can be given only with one repository, but there are"
                f" {len(locations)}; write NAME=URL to name the model at a URL"
            )
        opened = [
            open_repository(
                location,
                formats=FORMATS,
                cache=cache,
                configs=configs,
                name=model_name,
                edited=bool(options.debugged_model),
            )
            for location in locations.values()
        ]
        self._lifecycle = Lifecycle(self.engine, opened, options)
        self._locations = tuple(split_name(location)[1] for location in locations.values())

    @property
    def state_folder(self) -> Path:
        """The folder that holds labels, the audit log, measurements and recorded requests."""
        return self._lifecycle.state_folder

    @property
    def poll(self) -> BusyPoll:
        """The busy poll of the event loop, which polls for requests before the loop sleeps. It is off until
        the owner of the loop allows it.
        """
        return self._lifecycle.poll

    async def start(self, on_event: Callable[[LoadEvent], None] | None = None) -> None:
        """Loads the models that the options ask for. A model that fails becomes UNAVAILABLE, with the reason.

        Raises BacklineError if a repository or a file of routes cannot be read, or, with `exit_on_error`, if
        a model fails.
        """
        open_asked(self.engine, self.state_folder, self._locations)
        await self._lifecycle.start(on_event)
        if self._exit_on_error:
            failed = [model for model in self.engine.models() if model.state is ModelState.UNAVAILABLE]
            if failed:
                reasons = "".join(
                    f"\n  {model.name} version {model.version}: {model.reason}" for model in failed
                )
                raise ModelsNotLoaded(
                    f"not all models could be loaded, but all are required to start:{reasons}"
                )

    def stopping(self) -> None:
        """Marks the engine as not ready, and fails pending requests to load models. Other requests in flight
        complete.
        """
        self.engine.stopping()
        self._lifecycle.stopping()

    async def stop(self) -> None:
        """Completes running requests, refuses queued requests, and unloads the models."""
        if self._stopped:
            return
        self._stopped = True
        self.stopping()
        await self._lifecycle.close()

    async def __aenter__(self) -> AsyncClient:
        """Loads the models and returns a client for them. Raises the errors of `start`, and Unavailable if
        this object has been used in a block before.
        """
        # Imported here, because a server needs no client.
        from backline.embedded.transport import InprocTransport
        from backline_client.client.aio import AsyncClient
        from backline_client.client.options import ClientOptions

        if self._client is not None or self._stopped:
            raise Unavailable("an Embedded can be used in only one `with` block: create another Embedded")
        client = AsyncClient("inproc:embedded", ClientOptions())
        transport = InprocTransport(client.address, self)
        await transport.open()
        self._client = client.through(transport)
        return self._client

    async def __aexit__(self, *error: object) -> None:
        if self._client is not None:
            await self._client.close()

    def __enter__(self) -> Client:
        """Loads the models on a background thread and returns a client for them. Raises the errors of
        `__aenter__`.
        """
        from backline_client.client.background_loop import background_loop
        from backline_client.client.sync import Client

        self._loop = background_loop()
        return Client.over(self._loop.run(self.__aenter__()), self._loop)

    def __exit__(self, *error: object) -> None:
        if self._loop is not None:
            self._loop.run(self.__aexit__())


def _same(location: str) -> str:
    """Returns a key that is equal for all spellings of one repository's location."""
    _, text = split_name(location)
    return text if "://" in text or text.startswith("hf:") else str(Path(text).resolve())
