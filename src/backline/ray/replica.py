"""A replica, which is a server in a Ray actor."""

from __future__ import annotations

import os
import re
import tempfile
import urllib.request
from pathlib import Path

import ray

from backline.client.background_loop import BackgroundLoop
from backline.lifecycle.options import LifecycleOptions
from backline.ray.spec import ReplicaSpec, ReplicaState
from backline.server import Server, ServerOptions

_METRIC = re.compile(rb"^(backline_utilisation|backline_desired_replicas) (\S+)$", re.MULTILINE)
#: Maximum time, in seconds, for the server to report its state.
_TIMEOUT = 1.0


class Replica:
    """Runs a server on a free port of its node. The server runs on a thread of the actor's process, so it
    ends when the actor does.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        host = ray.util.get_node_ip_address()
        self._loop = BackgroundLoop("backline-server")
        self._server = Server(
            ServerOptions(
                repositories=spec.repositories,
                host=host,
                http_port=0,
                grpc_port=None,
                metrics_port=None,
                target_in_flight=spec.target_in_flight,
                lifecycle=LifecycleOptions(state_folder=Path(tempfile.mkdtemp(prefix="backline-"))),
            )
        )
        self._loop.run(self._server.start())
        self._http = dict(self._server.urls)["HTTP"]

    def state(self) -> ReplicaState:
        """Returns the address and the scaling signal of the replica, for the controller."""
        with urllib.request.urlopen(f"{self._http}/metrics", timeout=_TIMEOUT) as page:
            metrics = {name.decode(): float(value) for name, value in _METRIC.findall(page.read())}
        return ReplicaState(
            self._http.replace("http", "grpc", 1),
            self._server.engine.ready,
            metrics["backline_utilisation"],
            metrics["backline_desired_replicas"],
            os.getpid(),
            ray.get_runtime_context().get_node_id(),
        )

    def stop(self) -> None:
        """Completes the requests in flight while refusing new ones, then closes the connections."""
        self._loop.run(self._server.stop())
