"""Deploys model repositories to a Ray cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from backline.client.ray_directory import NAMESPACE, controller_name, join_ray, replica_urls, require_ray
from backline.engine.errors import BacklineError, DeadlineExceeded, InvalidArgument
from backline.ray.spec import ReplicaSpec, ReplicaState

log = logging.getLogger("backline.ray")

#: Maximum time, in seconds, for an old controller to end, and for a controller to answer.
_END_WITHIN = 30.0
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Replicas of a server that Ray runs. They keep running when this program ends."""

    name: str
    replicas: int

    @property
    def url(self) -> str:
        """The URL of the deployment for `backline.connect` and for remote models."""
        return f"ray://{self.name}"

    def urls(self) -> Sequence[str]:
        """Returns the URLs of the replicas that accept requests."""
        return replica_urls(self.name)

    def states(self) -> Sequence[ReplicaState]:
        """Returns the states of the replicas that accept requests and have the current specification."""
        states: Sequence[ReplicaState] = self._ask("states")
        return states

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until all replicas have the current specification and accept requests.

        Raises DeadlineExceeded after `timeout` seconds, for example if the cluster has no room for another
        replica.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with suppress(BacklineError, require_ray().exceptions.RayError, TimeoutError, ValueError):
                if self._ask("settled"):
                    return
            time.sleep(0.1)
        raise DeadlineExceeded(
            f"not all replicas of the deployment '{self.name}' were ready within {timeout:g} s: does the"
            " cluster have room for one more replica, and does each node have the repository?"
        )

    def delete(self) -> None:
        """Stops all replicas once they have completed their requests, and then the controller."""
        ray = require_ray()
        controller = ray.get_actor(controller_name(self.name), namespace=NAMESPACE)
        ray.get(controller.stop.remote())
        _end_controller(self.name)

    def _ask(self, method: str) -> Any:
        ray = require_ray()
        controller = ray.get_actor(controller_name(self.name), namespace=NAMESPACE)
        return ray.get(getattr(controller, method).remote(), timeout=_TIMEOUT)


def deployment(
    *repositories: str,
    name: str = "backline",
    replicas: int = 1,
    max_replicas: int | None = None,
    revision: str = "",
    ray_actor_options: Mapping[str, Any] | None = None,
    target_in_flight: float | None = None,
    address: str | None = None,
) -> Deployment:
    """Deploys repositories to Ray: `replicas` servers, or up to `max_replicas` if the load needs them.

    If a deployment named `name` exists, its replicas are replaced one by one, without losing a request. If
    only the number of replicas changes, existing replicas are kept. A repository is a URL, or a path that
    exists on every node. `ray_actor_options` are Ray's actor options for each replica: num_cpus (1 by
    default), num_gpus, memory, resources. `address` is the address of the cluster, by default RAY_ADDRESS or
    a cluster on this machine. Pass a new `revision` to replace the replicas when nothing else has changed.

    Raises InvalidArgument for invalid arguments, and Unavailable if Ray cannot be reached.
    """
    most = replicas if max_replicas is None else max_replicas
    if not repositories:
        raise InvalidArgument("no repository was given: deployment('s3://bucket/models')")
    if not 1 <= replicas <= most:
        raise InvalidArgument(
            f"replicas is {replicas} and max_replicas {most}: expected at least 1, and max_replicas not below"
            " replicas"
        )
    if "/" in name or not name:
        raise InvalidArgument(f"'{name}' is not a valid name for a deployment: expected a name without '/'")
    ray = join_ray(address)
    if warning := open_ports_warning():
        log.warning(warning)
    from backline.ray.controller import Controller

    spec = ReplicaSpec(tuple(repositories), dict(ray_actor_options or {}), revision, target_in_flight)
    _end_controller(name)
    ray.remote(Controller).options(
        name=controller_name(name),
        namespace=NAMESPACE,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        num_cpus=0,
    ).remote(name, spec, replicas, most)
    return Deployment(name, replicas)


def _end_controller(name: str) -> None:
    """Ends the controller of a deployment. The replicas keep running for the next deployment of that name."""
    ray = require_ray()
    end = time.monotonic() + _END_WITHIN
    with suppress(ValueError):  # it does not exist, or has ended
        while time.monotonic() < end:
            ray.kill(ray.get_actor(controller_name(name), namespace=NAMESPACE), no_restart=True)
            time.sleep(0.05)


def open_ports_warning() -> str:
    """Returns a warning if Ray accepts commands from anyone who can reach its ports; empty if it requires a
    token.
    """
    import os

    try:
        from ray._private.authentication.authentication_utils import is_token_auth_enabled

        closed = is_token_auth_enabled()
    except ImportError:  # the module is private in Ray, and absent before 2.52
        closed = os.environ.get("RAY_AUTH_MODE") == "token"
    if closed:
        return ""
    where = require_ray().get_runtime_context().gcs_address
    return (
        f"Ray at {where} runs code for anyone who can reach its ports: set RAY_AUTH_MODE=token on all nodes,"
        " or close the ports to other machines"
    )
