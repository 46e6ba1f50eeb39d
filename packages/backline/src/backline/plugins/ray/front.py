"""The repository and the options of a server in front of a deployment. The server in front serves all models
of the replicas as remote models.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from msgspec.structs import replace

from backline.lifecycle.options import LifecycleOptions
from backline.plugins.ray.deployment import Deployment
from backline.plugins.ray.spec import shared_labels
from backline.server import ServerOptions
from backline_client.client.ray_directory import require_ray
from backline_client.values.errors import BacklineError

#: Seconds between two checks of the replicas' models, and between two scans of the repository that is
#: generated from these models.
_LOOK = 2.0
#: The maximum number of requests in flight to one model.
_MAX_IN_FLIGHT = 256


class RemoteRepository:
    """A repository of remote models, in `folder`. `url_of` returns the URL of the servers of a model.

    A server may scan the repository at any time. Models are created in another folder and moved into the
    repository when they are complete, so that a scan never finds an incomplete model.
    """

    def __init__(self, url_of: Callable[[str], str]) -> None:
        self._url_of = url_of
        self._root = Path(tempfile.mkdtemp(prefix="backline-front-"))
        self.folder = self._root / "models"
        self.folder.mkdir()
        self._moving = self._root / "moving"

    def write(self, models: Iterable[tuple[str, str]]) -> None:
        """Adds and removes versions of models, until the repository has exactly those in `models`, given as
        names and versions. Has no effect if `models` is empty, because replicas that have just started may
        have no ready models yet.

        Raises OSError if files cannot be written. The next call then completes the change.
        """
        wanted = frozenset(models)
        if not wanted:
            return
        there = {
            (model.name, version.name)
            for model in self.folder.iterdir()
            for version in model.iterdir()
            if version.is_dir()
        }
        names, known = ({name for name, _ in versions} for versions in (wanted, there))
        for name in sorted(known - names):
            (self.folder / name).rename(self._new_place())
        for name, version in sorted(there - wanted):
            if name in names:
                (self.folder / name / version).rename(self._new_place())
        for name in sorted(names - known):
            model = self._new_place()
            for version in sorted(version for of, version in wanted if of == name):
                (model / version).mkdir(parents=True)
            (model / "config.pbtxt").write_text(_configuration(self._url_of(name)))
            model.rename(self.folder / name)
        for name, version in sorted(wanted - there):
            (self.folder / name / version).mkdir(exist_ok=True)

    def _new_place(self) -> Path:
        """Returns a path on the repository's file system, after deleting the folder at this path."""
        shutil.rmtree(self._moving, ignore_errors=True)
        return self._moving

    def close(self) -> None:
        """Removes the repository."""
        shutil.rmtree(self._root, ignore_errors=True)


class Front:
    """The repository of a server in front of a deployment. A thread keeps it in sync with the models that
    the replicas have.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._repository = RemoteRepository(deployment.url_of)
        self._deployment = deployment
        self._ended = threading.Event()
        self._repository.write(deployment.models())
        self._thread = threading.Thread(target=self._follow, name="backline-front", daemon=True)
        self._thread.start()

    def options(self, options: ServerOptions) -> ServerOptions:
        """Returns the options of the server in front. Its models are remote, so options about model files and
        runs concern only the replicas, and are left out.
        """
        given = options.lifecycle
        lifecycle = LifecycleOptions(
            mode="poll",
            poll_seconds=_LOOK,
            labels=shared_labels(options),
            state_folder=given.state_folder,
            strict_readiness=given.strict_readiness,
            drain_seconds=given.drain_seconds,
            max_queued_requests=given.max_queued_requests,
        )
        return replace(
            options,
            repositories=(self._repository.folder,),
            lifecycle=lifecycle,
            config_name="",
            model_name="",
        )

    def close(self) -> None:
        """Stops the thread and removes the repository. The deployment keeps running."""
        self._ended.set()
        self._thread.join()
        self._repository.close()

    def _follow(self) -> None:
        errors = (BacklineError, require_ray().exceptions.RayError, OSError, TimeoutError, ValueError)
        while not self._ended.wait(_LOOK):
            # If the controller does not respond, or the disk is full, the server in front keeps its models.
            with suppress(*errors):
                self._repository.write(self._deployment.models())


def _configuration(url: str) -> str:
    parameters = {"urls": url, "max_in_flight": str(_MAX_IN_FLIGHT)}
    lines = [
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
        for name, value in parameters.items()
    ]
    # All versions are served here, because the replicas have already applied the model's version policy.
    return "\n".join(['backend: "remote"', "version_policy { all {} }", *lines, ""])
