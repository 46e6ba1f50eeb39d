"""A server in front of a deployment. It serves all models of the replicas as remote models."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from backline.client.options import ClientOptions
from backline.client.records import ModelIndex
from backline.client.sync import Client
from backline.engine.errors import BacklineError
from backline.ray.deployment import Deployment
from backline.server import ServerOptions

#: Seconds between two checks of the replicas' models, and between two scans of the repository generated from
#: them.
_LOOK = 2.0
#: The maximum number of requests in flight to one model.
_MAX_IN_FLIGHT = 256


class Front:
    """Maintains the repository of a server in front of a deployment, which contains the models of the
    replicas.
    """

    def __init__(self, deployment: Deployment) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="backline-front-"))
        self._deployment = deployment
        self._written: frozenset[tuple[str, str]] = frozenset()
        self._ended = threading.Event()
        self._client = Client(deployment.url, ClientOptions())
        self._write(self._client.models())
        self._thread = threading.Thread(target=self._follow, name="backline-front", daemon=True)
        self._thread.start()

    def options(self, options: ServerOptions) -> ServerOptions:
        """Returns the options of the server in front, derived from the options for the replicas."""
        lifecycle = replace(options.lifecycle, mode="poll", poll_seconds=_LOOK)
        return replace(options, repositories=(self.folder,), lifecycle=lifecycle)

    def close(self) -> None:
        """Stops following the replicas' models, and removes the repository. The deployment keeps running."""
        self._ended.set()
        self._thread.join()
        self._client.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _follow(self) -> None:
        while not self._ended.wait(_LOOK):
            try:
                self._write(self._client.models())
            except BacklineError:
                continue  # no replica answers at the moment: keep the models as they are

    def _write(self, models: Sequence[ModelIndex]) -> None:
        """Adds a folder for each new version, and removes the folders of versions that no longer exist."""
        wanted = frozenset((one.name, one.version) for one in models if one.ready and one.version)
        if not wanted:
            return  # replicas that have just started may have no ready models yet
        for name, version in sorted(wanted - self._written):
            folder = self.folder / name
            (folder / version).mkdir(parents=True, exist_ok=True)
            configuration = folder / "config.pbtxt"
            if not configuration.exists():
                configuration.write_text(_configuration(self._deployment.url))
        names = {name for name, _ in wanted}
        for name, version in sorted(self._written - wanted):
            gone = self.folder / name
            shutil.rmtree(gone / version if name in names else gone, ignore_errors=True)
        self._written = wanted


def _configuration(url: str) -> str:
    parameters = {"urls": url, "max_in_flight": str(_MAX_IN_FLIGHT)}
    lines = [
        f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}'
        for name, value in parameters.items()
    ]
    return "\n".join(['backend: "remote"', *lines, ""])
