"""Deploys model repositories to a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

from msgspec import structs

from backline.lifecycle.options import ALL_MODELS
from backline.plugins.ray.shards import AMOUNTS, MEMORY, Shard, place
from backline.plugins.ray.spec import ReplicaSpec, ReplicaState, replica_options
from backline.server import ServerOptions
from backline_client.client.ray_directory import (
    NAMESPACE,
    controller_name,
    join_ray,
    replica_urls,
    require_ray,
)
from backline_client.values.errors import BacklineError, DeadlineExceeded, InvalidArgument

log = logging.getLogger("backline.plugins.ray")

#: Maximum time, in seconds, for an actor to end, and for a controller to respond.
_END_WITHIN = 30.0
_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Deployment:
    """Replicas of a server, run by Ray. The replicas keep running when this program ends.

    `replicas` is the minimum number of replicas with each model.
    """

    name: str
    replicas: int

    @property
    def url(self) -> str:
        """The URL of the deployment for `backline.connect` and for remote models."""
        return f"ray://{self.name}"

    def url_of(self, model: str) -> str:
        """Returns the URL of the replicas that have a model."""
        return f"{self.url}/{quote(model, safe='')}"

    def urls(self, model: str = "") -> Sequence[str]:
        """Returns the URLs of the replicas that accept requests and have `model`, or of all replicas that
        accept requests if `model` is empty.

        Raises InvalidArgument if `model` is empty but the replicas have different models, and Unavailable if
        there is no such replica.
        """
        return replica_urls(self.name, model)

    def models(self) -> Sequence[tuple[str, str]]:
        """Returns the name and version of each model version that at least one replica has ready, sorted."""
        models: Sequence[tuple[str, str]] = self._ask("models")
        return models

    def states(self) -> Sequence[ReplicaState]:
        """Returns the states of the replicas that accept requests and have a current specification."""
        states: Sequence[ReplicaState] = self._ask("states")
        return states

    def wait_ready(self, timeout: float = 60.0) -> None:
        """Waits until all replicas have the current specification and accept requests.

        Raises DeadlineExceeded if this takes more than `timeout` seconds, for example because the cluster has
        no room for another replica.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            with suppress(BacklineError, require_ray().exceptions.RayError, TimeoutError, ValueError):
                if self._ask("settled"):
                    return
            time.sleep(0.1)
        raise DeadlineExceeded(
            f"not all replicas of the deployment '{self.name}' were ready within {timeout:g} s: check"
            " that the cluster has room for one more replica, and that each node has the repository"
        )

    def delete(self) -> None:
        """Stops each replica as soon as it has completed its requests, but after 35 seconds at the latest.
        Finally stops the controller, and the actor that keeps the states of sequences. Raises ValueError if
        there is no such deployment.
        """
        ray = require_ray()
        controller = ray.get_actor(controller_name(self.name), namespace=NAMESPACE)
        ray.get(controller.stop.remote())
        for name in (controller_name(self.name), keeper_name(self.name)):
            _end_actor(name)

    def _ask(self, method: str) -> Any:
        """Returns the result of a method of the controller. Raises ValueError if there is no such deployment,
        and RayError if the controller does not respond within _TIMEOUT seconds.
        """
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
    shards: bool = False,
    keep_sequences: bool = False,
    address: str | None = None,
    options: ServerOptions | None = None,
) -> Deployment:
    """Deploys repositories to Ray: on `replicas` servers, or on up to `max_replicas` if the load requires it.

    With `shards`, each replica loads only a part of the models: as many as fit into the memory and the GPUs
    that `ray_actor_options` reserves. `replicas` and `max_replicas` then apply to each part. With
    `keep_sequences`, a separate actor keeps the states of sequences, so that a sequence continues on another
    replica if the replica that ran it stops.

    If a deployment named `name` exists, its replicas are replaced one by one, without losing a request. If
    only the number of replicas changes, existing replicas are kept. A repository is a URL, or a path that
    exists on every node. `ray_actor_options` are Ray's actor options for each replica: num_cpus (1 by
    default), num_gpus, memory, resources. `address` is the address of the cluster, by default RAY_ADDRESS or
    a cluster on this machine. `target_in_flight` means the same as for `backline serve`. To replace the
    replicas when nothing else has changed, pass a new `revision`. `options` are the other options of the
    servers; their repositories and addresses are ignored, and each file that they name, such as the file of
    keys, must exist on every node.

    Raises InvalidArgument for invalid arguments, Unavailable if Ray cannot be reached and, with `shards`,
    BacklineError if a repository cannot be read.
    """
    most = replicas if max_replicas is None else max_replicas
    if not repositories:
        raise InvalidArgument("no repository was given: expected one, as in deployment('s3://bucket/models')")
    if not 1 <= replicas <= most:
        raise InvalidArgument(
            f"replicas is {replicas} and max_replicas {most}: expected at least 1, and max_replicas not below"
            " replicas"
        )
    if "/" in name or not name:
        raise InvalidArgument(f"'{name}' is not a valid name for a deployment: expected a name without '/'")
    join_ray(address)
    if warning := open_ports_warning():
        log.warning(warning)
    from backline.plugins.ray.controller import Controller

    options = options or ServerOptions(repositories)
    if target_in_flight is not None:
        options = structs.replace(options, target_in_flight=target_in_flight)
    spec = ReplicaSpec(
        replica_options(structs.replace(options, repositories=repositories)),
        dict(ray_actor_options or {}),
        revision,
        states=keeper_name(name) if keep_sequences else "",
    )
    specs = divided(spec) if shards else (spec,)
    _end_actor(controller_name(name))
    if keep_sequences:
        from backline.plugins.ray.states import StateKeeper

        _actor_class(StateKeeper, keeper_name(name), get_if_exists=True).remote()
    _actor_class(Controller, controller_name(name), max_task_retries=-1).remote(name, specs, replicas, most)
    return Deployment(name, replicas)


def keeper_name(deployment: str) -> str:
    """Returns the name of the actor that keeps the states of a deployment's sequences."""
    return f"{deployment}/states"


def _actor_class(kind: type, name: str, **options: Any) -> Any:
    """Returns the class of an actor that reserves no CPU and outlives this program. Whenever the actor ends,
    Ray restarts it.
    """
    return (
        require_ray()
        .remote(kind)
        .options(name=name, namespace=NAMESPACE, lifetime="detached", max_restarts=-1, num_cpus=0, **options)
    )


def divided(spec: ReplicaSpec) -> tuple[ReplicaSpec, ...]:
    """Returns a specification for each shard.

    Raises InvalidArgument if there is no model, if nothing limits how many models a replica may load, or if
    an option cannot be combined with shards, and BacklineError if a repository cannot be read.
    """
    from backline.plugins.ray.needs import read_needs

    lifecycle = spec.options.lifecycle
    chosen = lifecycle.mode == "explicit" and lifecycle.load_models != (ALL_MODELS,)
    if chosen or lifecycle.mode == "poll" or lifecycle.namespacing or spec.options.model_name:
        raise InvalidArgument(
            "with shards, each replica loads certain models by their names in the repositories: leave out"
            " --model-control-mode, --model-namespacing and --model-name, or deploy without shards"
        )
    room: dict[str, float] = {"num_cpus": 1.0}
    room |= {name: spec.actor_options[name] for name in AMOUNTS if name in spec.actor_options}
    locations = [str(one) for one in spec.options.repositories]
    needs = asyncio.run(read_needs(locations, spec.options.config_name))
    if not needs:
        raise InvalidArgument(f"{', '.join(locations)} has no models to divide among replicas")
    if MEMORY not in room and all(set(need.amounts) <= {MEMORY} for need in needs):
        raise InvalidArgument(
            "shards: it is not known how many models fit into a replica. Pass its memory in bytes,"
            " such as ray_actor_options={'memory': 4_000_000_000}, or set ray_actor_options in the"
            " configurations of models that need GPUs"
        )
    placed = place(needs, room)
    for number, shard in enumerate(placed, 1):
        log.info("shard %d of %d: %s", number, len(placed), ", ".join(shard.models))
    return tuple(_of_shard(spec, shard) for shard in placed)


def _of_shard(spec: ReplicaSpec, shard: Shard) -> ReplicaSpec:
    reserved = {
        name: int(amount) if amount == int(amount) else amount for name, amount in shard.reserved.items()
    }
    return replace(spec, actor_options={**spec.actor_options, **reserved}, models=shard.models)


def _end_actor(name: str) -> None:
    """Ends an actor. If the actor is the controller of a deployment, the replicas keep running, and the next
    deployment of the same name takes them over.
    """
    ray = require_ray()
    end = time.monotonic() + _END_WITHIN
    with suppress(ValueError):  # raised once the actor has ended, or if there is no such actor
        while time.monotonic() < end:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE), no_restart=True)
            time.sleep(0.05)


def open_ports_warning() -> str:
    """Returns a warning if Ray accepts commands from anyone who can reach its ports; "" if Ray requires a
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
