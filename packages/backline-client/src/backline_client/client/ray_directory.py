"""Finds the replicas of a deployment that Ray runs. Needs the extra `ray`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Any, Final
from urllib.parse import quote

from backline_client.values.errors import InvalidArgument, Unavailable

#: Ray's namespace for the actors of all deployments.
NAMESPACE: Final = "backline"
#: Maximum wait for a reply from the controller of a deployment, in seconds.
_TIMEOUT = 2.0
#: The last reply or error of each deployment's controller, and the time when it arrived (time.monotonic()).
#: Only one thread asks at a time; other threads wait for the reply to that thread.
_found: dict[str, tuple[float, ReplicaDirectory | Unavailable]] = {}
_asking = threading.Lock()


def controller_name(deployment: str) -> str:
    """Returns the name of the actor that runs a deployment."""
    return f"{deployment}/controller"


def require_ray() -> Any:
    """Returns the module ray. Raises InvalidArgument if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InvalidArgument(f"Ray is not installed: pip install 'backline[ray]' ({error})") from None
    return ray


def join_ray(address: str | None = None) -> Any:
    """Connects this process to Ray if it is not connected yet, and returns the module ray.

    `address` defaults to RAY_ADDRESS, or else to a cluster on this machine. Raises InvalidArgument if Ray is
    not installed, and Unavailable if it cannot be reached.
    """
    ray = require_ray()
    if not ray.is_initialized():
        try:
            ray.init(
                address=address or "auto", namespace=NAMESPACE, log_to_driver=False, logging_level="WARNING"
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise Unavailable(
                f"cannot reach Ray at {address or 'RAY_ADDRESS'}: {reason}. Start Ray (ray start --head), or"
                " check the address"
            ) from None
    return ray


@dataclass(frozen=True, slots=True)
class ReplicaDirectory:
    """The replicas of a deployment that take requests: their URLs, with the names of their models.

    `divided` says whether the replicas have different models. `sockets` has the Unix socket of each replica
    that has one: the replica's URL, the id of its node, and the path of the socket.
    """

    replicas: tuple[tuple[str, frozenset[str]], ...]
    divided: bool
    sockets: tuple[tuple[str, str, str], ...] = ()

    def near(self, node: str) -> ReplicaDirectory:
        """Returns the directory for clients on a node: replicas on the same node are named by their Unix
        sockets, if this process may use these sockets. A request over a Unix socket takes less time.
        """
        here = {
            url: f"grpc+unix:{quote(path)}"
            for url, at, path in self.sockets
            if at == node and os.access(path, os.R_OK | os.W_OK)
        }
        replicas = tuple((here.get(url, url), models) for url, models in self.replicas)
        return ReplicaDirectory(replicas, self.divided, self.sockets)


def replica_urls(
    deployment: str, model: str = "", *, max_age: float = 0.0, near: bool = False
) -> Sequence[str]:
    """Returns the URLs of the replicas that take requests and have `model`; if `model` is empty, of all
    replicas that take requests.

    With `near`, the URLs of replicas on this node may name Unix sockets, which only processes on this node
    can use.

    The result may be up to `max_age` seconds old, so that a server with many remote models does not ask Ray
    for each of them. Blocks. Raises InvalidArgument if `model` is empty but the replicas have different
    models, or if Ray is not installed, and Unavailable if there are no such replicas, or if Ray does not
    respond.
    """
    with _asking:
        asked_at, found = _found.get(deployment, (-math.inf, None))
        if found is None or monotonic() - asked_at > max_age:
            found = _ask(deployment)
            _found[deployment] = (monotonic(), found)
    if isinstance(found, Unavailable):
        raise Unavailable(found.message)
    if not model and found.divided:
        raise InvalidArgument(
            f"the replicas of the deployment '{deployment}' have different models: connect to"
            f" ray://{deployment}/MODEL for one model, or to the server in front for all models"
        )
    if near and found.sockets:
        found = found.near(_node())
    urls = [url for url, models in found.replicas if not model or model in models]
    if not urls:
        which = f"with model '{model}' " if model else ""
        raise Unavailable(
            f"no replica {which}of the deployment '{deployment}' takes requests at the moment; try again"
            " later"
        )
    return urls


def _node() -> str:
    """Returns the id of the node on which this process runs."""
    node: str = require_ray().get_runtime_context().get_node_id()
    return node


def _ask(deployment: str) -> ReplicaDirectory | Unavailable:
    """Asks the controller of a deployment for its replicas. Returns an error if there is no such deployment,
    or its controller does not respond. Raises Unavailable if Ray cannot be reached.
    """
    ray = join_ray()
    try:
        controller = ray.get_actor(controller_name(deployment), namespace=NAMESPACE)
        directory: ReplicaDirectory = ray.get(controller.directory.remote(), timeout=_TIMEOUT)
    except ValueError:
        return Unavailable(f"Ray runs no deployment named '{deployment}': check the name, or deploy it")
    except (ray.exceptions.RayError, TimeoutError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Unavailable(f"the controller of the deployment '{deployment}' does not answer: {reason}")
    return directory
