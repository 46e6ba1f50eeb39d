"""One replica of a deployment: a Ray actor that runs a server."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import ray
from msgspec.structs import replace

from backline.lifecycle.options import LifecycleOptions
from backline.observe.scaling import ScalingSignal
from backline.plugins.ray.spec import ReplicaSpec, ReplicaState
from backline.plugins.ray.states import RayStateStore
from backline.server import Server
from backline_client.client.background_loop import BackgroundLoop

#: Advice in the error for an unknown sequence: the first if no actor keeps the states of sequences, the
#: second if one does.
_NOT_KEPT = (
    "the replica that ran the sequence may have ended: begin the sequence again, or deploy with"
    " keep_sequences (--ray-keep-sequences) so that other replicas continue sequences"
)
_LOST = (
    "the replica that ran the sequence may have ended: begin the sequence again (other replicas continue only"
    " sequences whose state is in sequence_batching.state)"
)


class Replica:
    """An actor that runs a server on a free port of the node. The server runs on a thread of the actor's
    process, so it ends when the actor ends.
    """

    def __init__(self, spec: ReplicaSpec) -> None:
        host = ray.util.get_node_ip_address()
        self._loop = BackgroundLoop("backline-server")
        # Only this user has access to the folder, and so to the socket.
        folder = Path(tempfile.mkdtemp(prefix="backline-"))
        self._socket = folder / "socket"
        self._server = Server(
            replace(
                spec.options,
                host=host,
                grpc_host="",
                metrics_host="",
                http_port=0,
                grpc_port=None,
                metrics_port=None,
                unix_socket=self._socket,
                lifecycle=_lifecycle(spec, folder),
            )
        )
        self._loop.run(self._server.start())
        self._http = dict(self._server.urls)["HTTP"]

    def state(self) -> ReplicaState:
        """Returns the address, the scaling signal and the models of the replica, for the controller."""
        signal, models = self._loop.run(_load(self._server))
        return ReplicaState(
            self._http.replace("http", "grpc", 1),
            self._server.engine.ready,
            signal.utilisation,
            signal.desired_replicas,
            os.getpid(),
            ray.get_runtime_context().get_node_id(),
            models,
            str(self._socket),
        )

    def stop(self) -> None:
        """Completes the requests in flight while refusing new requests, and then closes the connections."""
        self._loop.run(self._server.stop())


def _lifecycle(spec: ReplicaSpec, state_folder: Path) -> LifecycleOptions:
    options = replace(
        spec.options.lifecycle,
        state_folder=state_folder,
        state_store=RayStateStore(spec.states) if spec.states else None,
        unknown_sequence_advice=_LOST if spec.states else _NOT_KEPT,
    )
    return options if spec.models is None else replace(options, mode="explicit", load_models=spec.models)


async def _load(server: Server) -> tuple[ScalingSignal, tuple[tuple[str, str], ...]]:
    """Returns the scaling signal, and the name and version of each model version that responds to requests.
    Must run on the server's event loop.
    """
    models = server.engine.models()
    return server.signal(), tuple(
        (model.name, model.version) for model in models if model.answers and model.version
    )
